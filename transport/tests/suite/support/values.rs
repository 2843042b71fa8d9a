//! Example values.

use moai_transport::frame::{
    Claims, Frame, FrameError, FrameKind, Received, Signatory, VerifiedFrame,
};
use moai_transport::ids::{ContextId, Digest, Identity, SessionId, WorkerId};

use super::signer::{NOW, OPERATOR, ROBOT, SERVER, SESSION, operators, servers, trusted};

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
        session: kind.concerns_session().then(session),
        number: u64::from(!matches!(
            kind,
            FrameKind::Chunk
                | FrameKind::Delete
                | FrameKind::Attest
                | FrameKind::Have
                | FrameKind::Challenge
                | FrameKind::Error
        )),
        model: matches!(kind, FrameKind::Job | FrameKind::Result).then(|| "grasp".parse().unwrap()),
        context: (kind == FrameKind::Open).then(context),
        expires_at: 1_800_000_000,
        compute_micros: None,
        tenant: (!concerns_robot).then(|| identity().tenant),
    }
}

pub(crate) fn frame(kind: FrameKind, body: impl Into<Vec<u8>>) -> Frame {
    Frame { kind, claims: claims(kind), body: body.into() }
}

/// The frame's bytes, signed by whoever signs its kind.
pub(crate) fn encode(frame: &Frame) -> Result<Vec<u8>, FrameError> {
    match frame.kind.signatory() {
        None => frame.encode(),
        Some(Signatory::Robot) => frame.encode_as_robot(&*ROBOT),
        Some(Signatory::Session) => frame.encode_as_session(&SESSION),
        Some(Signatory::Server) => frame.encode_as_server(&SERVER),
        Some(Signatory::Operator) => frame.encode_as_operator(&OPERATOR),
    }
}

/// The frame in these bytes, verified as whoever gets it does.
pub(crate) fn decode(bytes: &[u8]) -> Result<Frame, String> {
    match Received::decode(bytes).map_err(|error| error.to_string())? {
        Received::Chunk(chunk) => Ok(chunk.into_frame()),
        Received::Signed(signed) => match signed.kind().signatory() {
            None => panic!("a {:?} frame is signed", signed.kind()),
            Some(Signatory::Robot) => {
                signed.verify_robot(&trusted(), NOW).map(VerifiedFrame::into_frame)
            }
            Some(Signatory::Session) => signed.verify_session(&SESSION.public(), NOW),
            Some(Signatory::Server) => signed.verify_server(&servers(), NOW),
            Some(Signatory::Operator) => signed.verify_operator(&operators(), NOW),
        }
        .map_err(|error| error.to_string()),
    }
}
