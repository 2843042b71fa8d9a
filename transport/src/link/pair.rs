//! A link whose other end is in this process, for tests and simulations: no broker, no socket.
//!
//! Invariant: each publication is seen once, and is answered, by whoever holds the far end; dropping
//! it unanswered fails it like a lost connection does.

use tokio::sync::mpsc;

use super::publications::{Reply, answer};
use super::queue::{Next, Queue};
use super::{Command, EVENT_QUEUE_LEN, Link, LinkEvent, Outgoing, PublishError};

/// The far end of a link: what a broker would be.
pub struct FarEnd {
    queue: Queue,
    events: mpsc::Sender<LinkEvent>,
}

/// A publication that waits for its acknowledgement.
pub struct Publication {
    outgoing: Outgoing,
    reply: Option<Reply>,
}

/// A link and its far end. The link is down until the far end tells [`LinkEvent::Up`].
#[must_use]
pub fn pair() -> (Link, mpsc::Receiver<LinkEvent>, FarEnd) {
    let (queue, prompt, bulk) = Queue::new();
    let (events, event_receiver) = mpsc::channel(EVENT_QUEUE_LEN);
    (Link { prompt, bulk }, event_receiver, FarEnd { queue, events })
}

impl FarEnd {
    /// The next publication; none when every handle of the link is gone.
    pub async fn next(&mut self) -> Option<Publication> {
        let (Next::Prompt(command) | Next::Bulk(command)) = self.queue.next(true).await?;
        let Command { outgoing, reply } = command;
        Some(Publication { outgoing, reply: Some(reply) })
    }

    /// Has the link tell its consumer something; waits while the consumer is behind. False if it
    /// has gone.
    pub async fn tell(&self, event: LinkEvent) -> bool {
        self.events.send(event).await.is_ok()
    }

    /// A handle that tells events while somebody else waits for publications.
    #[must_use]
    pub fn events(&self) -> mpsc::Sender<LinkEvent> {
        self.events.clone()
    }
}

impl Publication {
    /// What is published.
    #[must_use]
    pub fn outgoing(&self) -> &Outgoing {
        &self.outgoing
    }

    /// Acknowledges it, as a broker does.
    pub fn accept(self) -> Outgoing {
        self.end(Ok(()))
    }

    /// Fails it.
    pub fn refuse(self, error: PublishError) -> Outgoing {
        self.end(Err(error))
    }

    fn end(mut self, outcome: Result<(), PublishError>) -> Outgoing {
        if let Some(reply) = self.reply.take() {
            answer(reply, outcome);
        }
        self.outgoing.clone()
    }
}

impl Drop for Publication {
    fn drop(&mut self) {
        if let Some(reply) = self.reply.take() {
            answer(reply, Err(PublishError::Down));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Qos;
    use super::*;

    #[tokio::test]
    async fn a_publication_ends_as_the_far_end_says() {
        let (link, _events, mut far) = pair();
        let publish = |topic: &'static str| {
            let link = link.clone();
            tokio::spawn(
                async move { link.publish(Outgoing::new(topic, "x", Qos::AtLeastOnce)).await },
            )
        };
        let taken = publish("one");
        assert_eq!(far.next().await.unwrap().accept().topic, "one");
        assert_eq!(taken.await.unwrap(), Ok(()));
        let dropped = publish("two");
        drop(far.next().await.unwrap());
        assert_eq!(dropped.await.unwrap(), Err(PublishError::Down));
        drop(far);
        let gone = publish("three").await.unwrap();
        assert_eq!(gone, Err(PublishError::Closed));
    }
}
