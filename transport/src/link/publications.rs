//! Publications under way, and who waits for them.
//!
//! Invariants:
//! - a publication is handed to the client library only when the previous one has its packet id,
//!   so that the order of ids is the order of those who wait;
//! - publications under way, counted from the oldest unacknowledged one, are fewer than the packet
//!   ids in use: the library never sees two with one id, of which it would lose one, and it never
//!   stops reading requests, which would hold back our acknowledgements and the good-bye;
//! - whoever waits gets one answer.

use std::collections::VecDeque;

use rumqttc::v5::mqttbytes::v5::{PubAck, PubAckReason};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::PublishError;
use super::pacer::Departure;

pub(super) type Reply = oneshot::Sender<Result<(), PublishError>>;

/// A publication with a packet id.
struct Outstanding {
    packet_id: u16,
    sent_at: Instant,
    departure: Departure,
    /// Gone when it was acknowledged before an older one.
    reply: Option<Reply>,
}

/// Who waits for what.
pub(super) struct Publications {
    /// Handed to the client library, not yet on the wire.
    unsent: Option<(Reply, Departure)>,
    /// On the wire, oldest first.
    outstanding: VecDeque<Outstanding>,
    limit: usize,
}

impl Publications {
    /// For a connection on which `packet_ids` ids are in use.
    pub(super) fn new(packet_ids: u16) -> Self {
        let limit = usize::from(packet_ids.saturating_sub(1).max(1));
        Self { unsent: None, outstanding: VecDeque::new(), limit }
    }

    /// Whether another one may be handed over.
    pub(super) fn has_room(&self) -> bool {
        self.unsent.is_none() && self.outstanding.len() < self.limit
    }

    /// When the oldest unacknowledged one was sent.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.outstanding.front().map(|oldest| oldest.sent_at)
    }

    pub(super) fn on_handed_over(&mut self, reply: Reply, departure: Departure) {
        self.unsent = Some((reply, departure));
    }

    /// The client library has written it to the network, with this packet id; 0 for at most once.
    pub(super) fn on_sent(&mut self, packet_id: u16, now: Instant) {
        let Some((reply, departure)) = self.unsent.take() else { return };
        if packet_id == 0 {
            answer(reply, Ok(()));
        } else {
            let reply = Some(reply);
            self.outstanding.push_back(Outstanding { packet_id, sent_at: now, departure, reply });
        }
    }

    /// The broker has acknowledged one; returns which.
    pub(super) fn on_puback(&mut self, puback: &PubAck) -> Option<Departure> {
        let result = match puback.reason {
            PubAckReason::Success | PubAckReason::NoMatchingSubscribers => Ok(()),
            reason => Err(PublishError::Refused(format!("{reason:?}"))),
        };
        let mut waiting = self.outstanding.iter_mut();
        let acknowledged = waiting
            .find(|one| one.packet_id == puback.pkid && one.reply.is_some())
            .and_then(|one| Some((one.reply.take()?, one.departure)));
        let departure = acknowledged.map(|(reply, departure)| {
            answer(reply, result);
            departure
        });
        while self.outstanding.front().is_some_and(|one| one.reply.is_none()) {
            self.outstanding.pop_front();
        }
        departure
    }

    /// The connection is gone.
    pub(super) fn fail_all(&mut self) {
        let outstanding = self.outstanding.drain(..).filter_map(|one| one.reply);
        for reply in outstanding.chain(self.unsent.take().map(|(reply, _)| reply)) {
            answer(reply, Err(PublishError::Down));
        }
    }
}

/// Tells who waits, who may have gone.
pub(super) fn answer(reply: Reply, result: Result<(), PublishError>) {
    drop(reply.send(result));
}

#[cfg(test)]
mod tests {
    use super::super::pacer::Pacer;
    use super::*;

    fn hand_over(publications: &mut Publications) -> oneshot::Receiver<Result<(), PublishError>> {
        assert!(publications.has_room());
        let (reply, outcome) = oneshot::channel();
        let mut pacer = Pacer::new(std::time::Duration::from_secs(30));
        publications.on_handed_over(reply, pacer.on_departure(1, false, Instant::now()));
        outcome
    }

    #[test]
    fn an_acknowledgement_out_of_order_answers_its_own_and_frees_no_room_yet() {
        let mut publications = Publications::new(3);
        let mut first = hand_over(&mut publications);
        assert!(!publications.has_room(), "the first has no packet id yet");
        publications.on_sent(1, Instant::now());
        let mut second = hand_over(&mut publications);
        publications.on_sent(2, Instant::now());
        publications.on_puback(&PubAck::new(2, None));
        assert_eq!(second.try_recv(), Ok(Ok(())));
        assert!(first.try_recv().is_err());
        assert!(!publications.has_room(), "the third would get the first one's packet id");
        publications.on_puback(&PubAck::new(1, None));
        assert_eq!(first.try_recv(), Ok(Ok(())));
        assert!(publications.has_room());
    }

    #[test]
    fn a_lost_connection_answers_everyone() {
        let mut publications = Publications::new(8);
        let mut sent = hand_over(&mut publications);
        publications.on_sent(1, Instant::now());
        let mut unsent = hand_over(&mut publications);
        publications.fail_all();
        assert_eq!(sent.try_recv(), Ok(Err(PublishError::Down)));
        assert_eq!(unsent.try_recv(), Ok(Err(PublishError::Down)));
    }
}
