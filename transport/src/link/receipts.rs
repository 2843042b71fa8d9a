//! Messages whose acknowledgement waits for the consumer.
//!
//! Invariants:
//! - a receipt counts only for the connection it was issued on;
//! - acknowledgements leave in the order of arrival, whatever the order of confirmations.

use std::collections::VecDeque;

use tokio::sync::mpsc;

/// Packet ids of MQTT are 16 bits: there are never more unacknowledged messages.
const MAX_UNACKNOWLEDGED: usize = u16::MAX as usize;

/// What the consumer confirms when it is done with a message; dropped, the message counts as not
/// delivered.
pub struct Receipt {
    packet_id: u16,
    confirmed: mpsc::Sender<u16>,
}

impl Receipt {
    /// The broker may forget the message.
    pub fn confirm(self) {
        // A connection that has ended takes no acknowledgement: the message comes again.
        let _ = self.confirmed.try_send(self.packet_id);
    }

    /// Whether the connection has ended, so that the message comes again in any case.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        self.confirmed.is_closed()
    }
}

/// The receipts of one connection.
pub(super) struct Receipts {
    sender: mpsc::Sender<u16>,
    receiver: mpsc::Receiver<u16>,
    /// Unacknowledged messages, oldest first, and whether they were confirmed.
    issued: VecDeque<(u16, bool)>,
}

impl Receipts {
    pub(super) fn new() -> Self {
        let (sender, receiver) = mpsc::channel(MAX_UNACKNOWLEDGED);
        Self { sender, receiver, issued: VecDeque::new() }
    }

    /// A receipt for the message that arrived after all others.
    pub(super) fn issue(&mut self, packet_id: u16) -> Receipt {
        self.issued.push_back((packet_id, false));
        Receipt { packet_id, confirmed: self.sender.clone() }
    }

    /// The next confirmation; waits for ever if none comes.
    pub(super) async fn confirmed(&mut self) -> u16 {
        match self.receiver.recv().await {
            Some(packet_id) => packet_id,
            // We hold a sender ourselves.
            None => std::future::pending().await,
        }
    }

    /// The next confirmation, if there is one.
    pub(super) fn confirmed_already(&mut self) -> Option<u16> {
        self.receiver.try_recv().ok()
    }

    /// Takes a confirmation; returns what may be acknowledged now.
    pub(super) fn settle(&mut self, packet_id: u16) -> Vec<u16> {
        let confirmed = self.issued.iter_mut().find(|(id, done)| *id == packet_id && !done);
        if let Some((_, done)) = confirmed {
            *done = true;
        }
        let ready = self.issued.iter().take_while(|(_, done)| *done).count();
        self.issued.drain(..ready).map(|(id, _)| id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn acknowledgements_keep_the_order_of_arrival() {
        let mut receipts = Receipts::new();
        let [one, two, three] = [1, 2, 3].map(|id| receipts.issue(id));
        three.confirm();
        let id = receipts.confirmed().await;
        assert_eq!(receipts.settle(id), [0; 0]);
        one.confirm();
        let id = receipts.confirmed().await;
        assert_eq!(receipts.settle(id), [1]);
        two.confirm();
        let id = receipts.confirmed().await;
        assert_eq!(receipts.settle(id), [2, 3]);
        let late = receipts.issue(4);
        assert!(!late.is_stale());
        drop(receipts);
        assert!(late.is_stale());
    }
}
