//! Messages that arrived and wait for the consumer.
//!
//! Invariants:
//! - messages of at least once are never dropped here; the broker limits them, and one that
//!   ignores the limit it was told is an error;
//! - messages of at most once are limited by number and bytes, and what is dropped is counted;
//! - the order of arrival is kept.

use std::collections::VecDeque;

use super::Message;

/// Most messages of at most once that wait.
const MAX_UNACKNOWLEDGED_COUNT: usize = 1024;
/// Most bytes of messages of at most once that wait.
const MAX_UNACKNOWLEDGED_BYTES: usize = 4 * 1024 * 1024;

/// A message, with the packet id to acknowledge if it has one.
pub(super) struct Arrived {
    pub(super) message: Message,
    pub(super) packet_id: Option<u16>,
}

#[derive(Default)]
pub(super) struct Inbox {
    queue: VecDeque<Arrived>,
    /// Of messages of at most once.
    count: usize,
    bytes: usize,
    dropped: u64,
}

impl Inbox {
    /// Takes a message in; false if it had to be dropped.
    pub(super) fn push(&mut self, arrived: Arrived) -> bool {
        if arrived.packet_id.is_none() {
            let len = weight(&arrived.message);
            let is_full = self.count >= MAX_UNACKNOWLEDGED_COUNT
                || self.bytes.saturating_add(len) > MAX_UNACKNOWLEDGED_BYTES;
            if is_full {
                self.dropped += 1;
                return false;
            }
            self.count += 1;
            self.bytes += len;
        }
        self.queue.push_back(arrived);
        true
    }

    /// The oldest message.
    pub(super) fn pop(&mut self) -> Option<Arrived> {
        let arrived = self.queue.pop_front()?;
        if arrived.packet_id.is_none() {
            self.count = self.count.saturating_sub(1);
            self.bytes = self.bytes.saturating_sub(weight(&arrived.message));
        }
        Some(arrived)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether something was dropped since [`Self::take_dropped`].
    pub(super) fn is_dropping(&self) -> bool {
        self.dropped > 0
    }

    /// How many were dropped since this was last asked.
    pub(super) fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }
}

fn weight(message: &Message) -> usize {
    message.topic.len() + message.payload.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrived(number: u32, len: usize, packet_id: Option<u16>) -> Arrived {
        let message = Message {
            topic: number.to_string(),
            payload: vec![0; len].into(),
            retained: false,
            content_type: None,
            response_topic: None,
            correlation_data: None,
        };
        Arrived { message, packet_id }
    }

    #[test]
    fn only_messages_of_at_most_once_are_dropped_and_each_is_counted() {
        let mut inbox = Inbox::default();
        let taken = (0..2000).filter(|n| inbox.push(arrived(*n, 10, None))).count();
        assert_eq!(taken, MAX_UNACKNOWLEDGED_COUNT);
        assert!(inbox.push(arrived(3000, 10, Some(1))));
        assert_eq!(inbox.take_dropped(), 2000 - 1024);
        assert_eq!(inbox.take_dropped(), 0);
        let topics: Vec<_> =
            std::iter::from_fn(|| inbox.pop()).map(|arrived| arrived.message.topic).collect();
        assert_eq!(topics.len(), 1025);
        assert_eq!(topics.last().unwrap(), "3000");
        assert!(inbox.push(arrived(1, 10, None)));
    }

    #[test]
    fn bytes_are_limited_too() {
        let mut inbox = Inbox::default();
        let taken = (0..10).filter(|n| inbox.push(arrived(*n, 1024 * 1024, None))).count();
        assert_eq!(taken, 3);
    }
}
