//! Example values.

use moai_transport::frame::{Claims, Frame, FrameKind};
use moai_transport::ids::{ContextId, Digest, Identity, SessionId, WorkerId};

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
