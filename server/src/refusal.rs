//! Why a frame is refused: a code a robot can act on, and words for people.

use moai_transport::frame::{FrameError, SignatureError};
use moai_transport::message::ErrorCode;

use crate::store::StoreError;

/// A refusal of one frame.
#[derive(Debug)]
pub(crate) struct Refused(pub(crate) ErrorCode, pub(crate) String);

impl Refused {
    /// An open that is not newer than the newest of its session.
    pub(crate) fn replayed(newest: u64) -> Self {
        let message =
            format!("an open of number {newest} was here before, and only newer ones count");
        Self(ErrorCode::Replayed, message)
    }

    /// A session that is over, by its robot or by its time.
    pub(crate) fn ended() -> Self {
        Self(ErrorCode::ExpiredSession, "the session is over; open another".to_owned())
    }

    /// A session that is neither here nor in the store.
    pub(crate) fn unknown() -> Self {
        let message = "the session is unknown here; open it again".to_owned();
        Self(ErrorCode::UnknownSession, message)
    }
}

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
            | SignatureError::NotTheServer
            | SignatureError::NotTheOperator => ErrorCode::BadSignature,
            SignatureError::OtherRobot { .. } => ErrorCode::IdentityMismatch,
            SignatureError::OtherSignatory(_) => ErrorCode::MalformedFrame,
            SignatureError::Stale(_) => ErrorCode::ExpiredFrame,
        };
        Self(code, error.to_string())
    }
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        tracing::error!(%error, "the key store failed");
        // Paths and addresses are none of a robot's business.
        let message = match error {
            StoreError::Unavailable(_) | StoreError::Unusable(_) => "the key store is out of reach",
            StoreError::Full(_) => "the key store is full",
        };
        Self(ErrorCode::Busy, format!("{message}; try again later"))
    }
}
