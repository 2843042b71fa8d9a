//! What an open task works with.

use std::num::NonZeroUsize;

use moai_transport::ids::SessionId;
use tokio::time::Instant;

use crate::onboard::OpenRequest;
use crate::session::{Purpose, SessionHandle};
use crate::vault::Release;
use crate::window::WindowBuffer;

/// What an open task works with.
pub(super) struct Work {
    pub(super) purpose: Purpose,
    pub(super) channels: NonZeroUsize,
    pub(super) window: WindowBuffer,
    pub(super) current: Option<SessionHandle>,
    pub(super) successor: Option<SessionHandle>,
    /// The current session follows this one, which is not known to drain yet.
    pub(super) follows: Option<SessionId>,
    /// The current session is to have a successor.
    pub(super) renews: bool,
    /// When the current session was opened.
    pub(super) opened: Instant,
    /// No session is opened before.
    pub(super) retry_at: Option<Instant>,
    /// Sessions are held by an emergency.
    pub(super) is_held: bool,
}

impl Work {
    /// `None` if the model's window has no channels, which its card does not allow.
    pub(super) fn new(purpose: Purpose) -> Option<Self> {
        let window = WindowBuffer::new(&purpose.card);
        Some(Self {
            channels: NonZeroUsize::new(window.channels())?,
            purpose,
            window,
            current: None,
            successor: None,
            follows: None,
            renews: false,
            opened: Instant::now(),
            retry_at: None,
            is_held: false,
        })
    }

    /// Whether an open asks for what is open.
    pub(super) fn is_for(&self, request: &OpenRequest) -> bool {
        self.purpose.card.id() == request.model.as_str()
            && (self.purpose.ttl, self.purpose.release) == (request.ttl, release(request))
    }
}

pub(super) fn release(request: &OpenRequest) -> Release {
    if request.scores { Release::Scores } else { Release::Label }
}
