//! Messages that arrived and wait for the consumer.
//!
//! Invariants:
//! - no more bytes wait than the limit, whatever the broker sends, unless it is one message alone;
//! - messages of at least once are never dropped: what does not fit is reported, and the
//!   connection has to end, because the broker will not send it again on this one;
//! - messages of at most once have a part of the room only, and what is dropped is counted;
//! - the order of arrival is kept.

use std::collections::VecDeque;

use super::Message;

/// What a message weighs beyond its topic and payload.
const OVERHEAD: usize = 256;
/// The part of the room that messages of at most once may take.
const AT_MOST_ONCE_PART: usize = 4;

/// A message, with the packet id to acknowledge if it has one.
pub(super) struct Arrived {
    pub(super) message: Message,
    pub(super) packet_id: Option<u16>,
}

/// What became of a message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// It waits.
    Waits,
    /// It was of at most once and there was no room.
    Dropped,
    /// It was of at least once and there was no room.
    Overrun,
}

pub(super) struct Inbox {
    queue: VecDeque<Arrived>,
    limit: usize,
    bytes: usize,
    at_most_once_bytes: usize,
    dropped: u64,
}

impl Inbox {
    /// An inbox for this many bytes.
    pub(super) fn new(limit: usize) -> Self {
        Self { queue: VecDeque::new(), limit, bytes: 0, at_most_once_bytes: 0, dropped: 0 }
    }

    pub(super) fn push(&mut self, arrived: Arrived) -> Taken {
        let weight = weight(&arrived.message);
        let has_room = self.queue.is_empty() || self.bytes.saturating_add(weight) <= self.limit;
        if arrived.packet_id.is_some() {
            if !has_room {
                return Taken::Overrun;
            }
        } else {
            let part = self.limit / AT_MOST_ONCE_PART;
            if !has_room || self.at_most_once_bytes.saturating_add(weight) > part {
                self.dropped += 1;
                return Taken::Dropped;
            }
            self.at_most_once_bytes += weight;
        }
        self.bytes += weight;
        self.queue.push_back(arrived);
        Taken::Waits
    }

    /// The oldest message.
    pub(super) fn pop(&mut self) -> Option<Arrived> {
        let arrived = self.queue.pop_front()?;
        let weight = weight(&arrived.message);
        self.bytes = self.bytes.saturating_sub(weight);
        if arrived.packet_id.is_none() {
            self.at_most_once_bytes = self.at_most_once_bytes.saturating_sub(weight);
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
    OVERHEAD + message.topic.len() + message.payload.len()
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
            receipt: None,
        };
        Arrived { message, packet_id }
    }

    #[test]
    fn messages_of_at_most_once_leave_room_for_the_others() {
        let mut inbox = Inbox::new(40_000);
        let waiting =
            (0..100).filter(|n| inbox.push(arrived(*n, 742, None)) == Taken::Waits).count();
        assert_eq!(waiting, 10);
        assert_eq!(inbox.push(arrived(3000, 29_000, Some(1))), Taken::Waits);
        assert_eq!(inbox.take_dropped(), 90);
        assert_eq!(inbox.take_dropped(), 0);
        let topics: Vec<_> =
            std::iter::from_fn(|| inbox.pop()).map(|arrived| arrived.message.topic).collect();
        assert_eq!(topics.len(), 11);
        assert_eq!(topics.last().unwrap(), "3000");
        assert_eq!(inbox.push(arrived(1, 742, None)), Taken::Waits);
    }

    #[test]
    fn what_must_not_be_dropped_is_an_overrun_and_room_comes_back() {
        let mut inbox = Inbox::new(2_000);
        assert_eq!(inbox.push(arrived(1, 743, Some(1))), Taken::Waits);
        assert_eq!(inbox.push(arrived(2, 743, Some(2))), Taken::Waits);
        assert_eq!(inbox.push(arrived(3, 743, Some(3))), Taken::Overrun);
        assert_eq!(inbox.pop().unwrap().packet_id, Some(1));
        assert_eq!(inbox.push(arrived(3, 743, Some(3))), Taken::Waits);
        while inbox.pop().is_some() {}
        assert_eq!(inbox.push(arrived(4, 5_000, Some(4))), Taken::Waits);
        assert_eq!(inbox.push(arrived(5, 0, Some(5))), Taken::Overrun);
    }
}
