//! Example values.

use moai_transport::frame::{Claims, Frame, FrameError, FrameKind, Received};
use moai_transport::ids::{ContextId, Digest, Identity, SessionId, WorkerId};

use super::signer::{NOW, ROBOT, trusted};

pub(crate) fn identity() -> Identity {
    "acme.robot-1".parse().unwrap()
}

pub(crate) fn session() -> SessionId {
    "018f4d2a-7c00-7abc-8def-0123456789ab".parse().unwrap()
}

pub(crate) fn worker() -> WorkerId {
    "worker-1".parse().unwrap()
}

pub(crate) fn context() -> ContextId {
    ContextId(Digest::of(b"context"))
}

/// Claims that a frame of this kind must have.
pub(crate) fn claims(kind: FrameKind) -> Claims {
    let concerns_robot = kind != FrameKind::Models;
    Claims {
        identity: concerns_robot.then(identity),
        session: concerns_robot.then(session),
        number: u64::from(matches!(kind, FrameKind::Job | FrameKind::Result)),
        model: (kind == FrameKind::Job).then(|| "grasp".parse().unwrap()),
        context: (kind == FrameKind::Open).then(context),
        expires_at: 1_800_000_000,
        compute_micros: None,
    }
}

pub(crate) fn frame(kind: FrameKind, body: impl Into<Vec<u8>>) -> Frame {
    Frame { kind, claims: claims(kind), body: body.into() }
}

/// The frame's bytes, signed by the robot if its kind is signed.
pub(crate) fn encode(frame: &Frame) -> Result<Vec<u8>, FrameError> {
    if frame.kind.is_signed() { frame.encode_signed(&*ROBOT) } else { frame.encode() }
}

/// The frame in these bytes, verified if its kind is signed.
pub(crate) fn decode(bytes: &[u8]) -> Result<Frame, String> {
    match Received::decode(bytes).map_err(|error| error.to_string())? {
        Received::Plain(frame) => Ok(frame),
        Received::Signed(signed) => {
            let verified = signed.verify(&trusted(), NOW).map_err(|error| error.to_string())?;
            Ok(verified.into_frame())
        }
    }
}
