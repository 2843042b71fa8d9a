//! The client library at work.
//!
//! Invariants:
//! - its poll is never dropped halfway while the connection lives, because it would lose packets;
//! - everything it read is told, also what came right before the end of the connection;
//! - a panic of its parser ends the connection, not the link;
//! - when [`Pump::stop`] returns, the socket is closed.

use rumqttc::v5::{ConnectionError, Event, EventLoop};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::LinkError;

/// Events that the client library may be ahead of the connection.
const QUEUE_LEN: usize = 16;

/// The task in which the client library runs.
pub(super) struct Pump {
    polled: mpsc::Receiver<Result<Event, ConnectionError>>,
    task: JoinHandle<()>,
}

impl Pump {
    pub(super) fn start(mut event_loop: EventLoop) -> Self {
        let (sender, polled) = mpsc::channel(QUEUE_LEN);
        let task = tokio::spawn(async move {
            loop {
                let polled = event_loop.poll().await;
                let is_end = polled.is_err();
                if is_end {
                    // What it read in the turn in which the connection ended, it would keep.
                    for event in event_loop.state.events.drain(..) {
                        let _ = sender.send(Ok(event)).await;
                    }
                }
                if sender.send(polled).await.is_err() || is_end {
                    return;
                }
            }
        });
        Self { polled, task }
    }

    /// What the client library did next. May be dropped at any time.
    pub(super) async fn next(&mut self) -> Result<Event, LinkError> {
        match self.polled.recv().await {
            Some(polled) => Ok(polled?),
            None => Err(LinkError::Protocol("its packets broke the parser".to_owned())),
        }
    }

    pub(super) async fn stop(&mut self) {
        self.task.abort();
        // Aborted, ended before, or panicked: over in any case.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.task.abort();
    }
}
