//! Why a frame is refused: a code a robot can act on, and words for people.

use moai_transport::frame::{FrameError, SignatureError};
use moai_transport::message::ErrorCode;

/// A refusal of one frame.
#[derive(Debug)]
pub(crate) struct Refused(pub(crate) ErrorCode, pub(crate) String);

impl From<FrameError> for Refused {
    fn from(error: FrameError) -> Self {
        let code = match error {
            FrameError::Unsigned(_) => ErrorCode::BadSignature,
            _ => ErrorCode::MalformedFrame,
        };
        Self(code, error.to_string())
    }
}

impl From<SignatureError> for Refused {
    fn from(error: SignatureError) -> Self {
        let code = match error {
            SignatureError::Certificate(_) => ErrorCode::UntrustedCertificate,
            SignatureError::BadSignature
            | SignatureError::NotTheSession
            | SignatureError::NotTheServer => ErrorCode::BadSignature,
            SignatureError::OtherRobot { .. } => ErrorCode::IdentityMismatch,
            SignatureError::OtherSignatory(_) => ErrorCode::MalformedFrame,
            SignatureError::Stale(_) => ErrorCode::ExpiredFrame,
        };
        Self(code, error.to_string())
    }
}
