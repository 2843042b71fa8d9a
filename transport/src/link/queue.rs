//! Publications that wait for their turn.
//!
//! Invariants:
//! - what is prompt goes before what is bulk;
//! - both wait in bounded channels: who comes later waits in [`super::Link::publish`].

use tokio::sync::mpsc;

use super::Command;

/// Publications of each kind that wait in the link.
const QUEUE_LEN: usize = 16;

/// The receiving end of both kinds.
pub(super) struct Queue {
    prompt: mpsc::Receiver<Command>,
    bulk: mpsc::Receiver<Command>,
}

/// A publication whose turn it is.
pub(super) enum Next {
    /// It goes at once.
    Prompt(Command),
    /// It is one of many and large ones.
    Bulk(Command),
}

impl Queue {
    /// A queue, and where to put what is prompt and what is bulk.
    pub(super) fn new() -> (Self, mpsc::Sender<Command>, mpsc::Sender<Command>) {
        let (prompt_sender, prompt) = mpsc::channel(QUEUE_LEN);
        let (bulk_sender, bulk) = mpsc::channel(QUEUE_LEN);
        (Self { prompt, bulk }, prompt_sender, bulk_sender)
    }

    /// The next publication, bulk only if `takes_bulk`; none once nobody can publish any more. May
    /// be dropped at any time.
    pub(super) async fn next(&mut self, takes_bulk: bool) -> Option<Next> {
        tokio::select! {
            biased;
            Some(command) = self.prompt.recv() => Some(Next::Prompt(command)),
            Some(command) = self.bulk.recv(), if takes_bulk => Some(Next::Bulk(command)),
            else => {
                // Handles are to both kinds, so nothing comes any more; but some may have to wait.
                if !self.bulk.is_empty() {
                    std::future::pending::<()>().await;
                }
                None
            }
        }
    }
}
