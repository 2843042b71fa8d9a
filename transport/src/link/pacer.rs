//! How many bytes of bulk publications may be under way to the broker.
//!
//! What the broker has not acknowledged lies in buffers on the way, and everything sent later, a
//! ping or a job, waits behind it. On a slow link a full buffer is many seconds.
//!
//! Invariants:
//! - bulk under way is at most what the link carries in [`QUEUE_DELAY`] on top of its round trip, in
//!   half a keep-alive, and [`MAX_WINDOW`]; but one publication may always be under way;
//! - nothing is assumed of a link: the first publication goes alone, and its acknowledgement is the
//!   first measurement. So it is again after a pause in which the link may have changed
//!   (RFC 5681 section 4.1 says the same of TCP);
//! - the rate is what was acknowledged while a bulk publication was under way, per time that it was
//!   (the delivery rate of BBR, draft-ietf-ccwg-bbr section 4.1.2): a link on which little is sent
//!   does not count as slow. The fastest of the last [`SAMPLES`] counts, so that one late
//!   acknowledgement changes nothing, and a link that has become slow is noticed within a few.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// Most bytes between us and the broker. Fills 100 Mbit/s at a round trip of 50 ms and more.
pub const MAX_WINDOW: usize = 1024 * 1024;
/// How long a prompt publication waits behind bulk, or as long as one bulk publication takes.
const QUEUE_DELAY: Duration = Duration::from_secs(1);
/// After so long without bulk, what was measured before counts no more.
const PAUSE: Duration = Duration::from_secs(1);
/// Measurements of the rate that are remembered.
const SAMPLES: usize = 4;
const MICROS: u128 = 1_000_000;

/// What has to be remembered of a publication to learn from its acknowledgement.
#[derive(Debug, Clone, Copy)]
pub(super) struct Departure {
    len: usize,
    is_bulk: bool,
    at: Instant,
    /// How many bytes had been acknowledged then.
    delivered: u64,
}

/// Measures one connection and says whether bulk may leave.
pub(super) struct Pacer {
    keep_alive: Duration,
    /// Bytes acknowledged since the beginning.
    delivered: u64,
    /// Bytes of bulk that are not acknowledged.
    in_flight: usize,
    /// Largest bulk publication so far, in bytes.
    largest: usize,
    /// Shortest time from handing a publication over to its acknowledgement.
    round_trip: Option<Duration>,
    /// Bytes a second, newest last.
    rates: VecDeque<u128>,
    /// When the last bulk was acknowledged, if none is under way.
    idle_since: Option<Instant>,
}

impl Pacer {
    /// For a new connection.
    pub(super) fn new(keep_alive: Duration) -> Self {
        let rates = VecDeque::with_capacity(SAMPLES);
        let (round_trip, idle_since) = (None, None);
        Self { keep_alive, delivered: 0, in_flight: 0, largest: 0, round_trip, rates, idle_since }
    }

    /// Whether another bulk publication may leave, taken to be as large as the largest so far.
    pub(super) fn has_room(&self) -> bool {
        self.in_flight == 0 || self.in_flight + self.largest <= self.window()
    }

    /// How many bytes of bulk may be under way; 0 while nothing was measured.
    fn window(&self) -> usize {
        let (Some(rate), Some(round_trip)) = (self.rates.iter().max(), self.round_trip) else {
            return 0;
        };
        let ahead = (round_trip + QUEUE_DELAY).min(self.keep_alive / 2);
        let bytes = rate.saturating_mul(ahead.as_micros()) / MICROS;
        usize::try_from(bytes).unwrap_or(usize::MAX).min(MAX_WINDOW)
    }

    /// A publication is handed over.
    pub(super) fn on_departure(&mut self, len: usize, is_bulk: bool, now: Instant) -> Departure {
        if is_bulk {
            if self.idle_since.take().is_some_and(|since| now >= since + PAUSE) {
                self.rates.clear();
            }
            self.in_flight += len;
            self.largest = self.largest.max(len);
        }
        Departure { len, is_bulk, at: now, delivered: self.delivered }
    }

    /// The broker has acknowledged a publication.
    pub(super) fn on_acknowledged(&mut self, departure: Departure, now: Instant) {
        let Departure { len, is_bulk, at, delivered } = departure;
        let took = now.saturating_duration_since(at);
        self.delivered += len as u64;
        self.round_trip = Some(self.round_trip.map_or(took, |shortest| shortest.min(took)));
        if !is_bulk {
            return;
        }
        self.in_flight = self.in_flight.saturating_sub(len);
        self.idle_since = (self.in_flight == 0).then_some(now);
        if self.rates.len() == SAMPLES {
            self.rates.pop_front();
        }
        let bytes = u128::from(self.delivered - delivered);
        self.rates.push_back(bytes * MICROS / took.as_micros().max(1));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const CHUNK: usize = 120 * 1024;
    const JOB: usize = 1000;
    const SLOW: Duration = Duration::from_secs(5);
    const USUAL: Duration = Duration::from_secs(30);

    /// A link with a buffer that never fills: what is sent later waits behind what was sent before.
    struct Wire {
        pacer: Pacer,
        now: Instant,
        /// Bytes a second.
        rate: u32,
        /// There and back, of an empty link.
        delay: Duration,
        /// When the buffer will be empty.
        idle_at: Instant,
        /// What will be acknowledged when.
        acknowledgements: BTreeMap<(Instant, u32), Departure>,
        sent: u32,
        most_in_flight: usize,
    }

    impl Wire {
        fn new(rate: u32, delay: Duration, keep_alive: Duration) -> Self {
            let now = Instant::now();
            Self {
                pacer: Pacer::new(keep_alive),
                now,
                rate,
                delay,
                idle_at: now,
                acknowledgements: BTreeMap::new(),
                sent: 0,
                most_in_flight: 0,
            }
        }

        /// Sends something; returns when its acknowledgement will be here.
        fn send(&mut self, len: usize, is_bulk: bool) -> Instant {
            let departure = self.pacer.on_departure(len, is_bulk, self.now);
            let takes = Duration::from_secs(1) * u32::try_from(len).unwrap() / self.rate;
            self.idle_at = self.idle_at.max(self.now) + takes;
            self.sent += 1;
            let acknowledged = self.idle_at + self.delay;
            self.acknowledgements.insert((acknowledged, self.sent), departure);
            self.most_in_flight = self.most_in_flight.max(self.pacer.in_flight);
            acknowledged
        }

        /// Sends bulk as fast as it is allowed to, until `end`.
        fn upload(&mut self, end: Instant) {
            while self.now < end {
                while self.pacer.has_room() {
                    self.send(CHUNK, true);
                }
                let Some(((at, _), departure)) = self.acknowledgements.pop_first() else { return };
                self.now = at;
                self.pacer.on_acknowledged(departure, at);
            }
        }

        fn upload_for(&mut self, duration: Duration) {
            self.upload(self.now + duration);
        }

        /// How long a job or a ping would take now, there and back.
        fn prompt(&mut self) -> Duration {
            self.send(JOB, false) - self.now
        }
    }

    #[test]
    fn on_a_slow_link_one_chunk_is_under_way_and_a_ping_is_answered_within_the_keep_alive() {
        for keep_alive in [SLOW, USUAL] {
            let mut wire = Wire::new(60_000, Duration::from_millis(50), keep_alive);
            let start = wire.now;
            for _ in 0..60 {
                wire.upload_for(Duration::from_secs(3));
                let prompt = wire.prompt();
                assert!(prompt < Duration::from_millis(2200), "{prompt:?}");
            }
            assert_eq!(wire.most_in_flight, CHUNK);
            // What is lost is a round trip a chunk.
            let carried = u64::from(wire.rate) * (wire.now - start).as_secs();
            assert!(
                wire.pacer.delivered > carried * 95 / 100,
                "{} of {carried}",
                wire.pacer.delivered
            );
        }
    }

    #[test]
    fn a_fast_link_is_filled_and_jobs_wait_a_moment() {
        for (rate, delay, patience) in
            [(12_500_000, 50, 200), (1_000_000, 600, 2300), (500_000, 100, 1500)]
        {
            let mut wire = Wire::new(rate, Duration::from_millis(delay), USUAL);
            wire.upload_for(Duration::from_secs(10));
            let (before, start) = (wire.pacer.delivered, wire.now);
            wire.upload_for(Duration::from_secs(10));
            let carried = u64::from(rate) * (wire.now - start).as_secs();
            let delivered = wire.pacer.delivered - before;
            assert!(delivered > carried * 9 / 10, "{delivered} of {carried} at {rate}");
            assert!(wire.most_in_flight <= MAX_WINDOW);
            let prompt = wire.prompt();
            assert!(prompt < Duration::from_millis(patience), "{prompt:?} at {rate}");
        }
    }

    #[test]
    fn a_link_that_becomes_slow_gets_less_and_one_that_recovers_more() {
        let mut wire = Wire::new(2_000_000, Duration::from_millis(50), USUAL);
        wire.upload_for(Duration::from_secs(5));
        assert!(wire.pacer.in_flight > 4 * CHUNK);
        wire.rate = 60_000;
        // What was under way has to leave first.
        wire.upload_for(Duration::from_secs(40));
        assert!(wire.pacer.in_flight <= CHUNK, "{}", wire.pacer.in_flight);
        wire.rate = 2_000_000;
        wire.upload_for(Duration::from_secs(5));
        assert!(wire.pacer.in_flight > 4 * CHUNK, "{}", wire.pacer.in_flight);
    }

    #[test]
    fn a_link_that_became_slow_between_two_uploads_is_not_filled() {
        let mut wire = Wire::new(50_000_000, Duration::from_millis(1), SLOW);
        wire.upload_for(Duration::from_secs(1));
        assert!(wire.most_in_flight > 4 * CHUNK);
        while let Some(((at, _), departure)) = wire.acknowledgements.pop_first() {
            wire.now = at;
            wire.pacer.on_acknowledged(departure, at);
        }
        (wire.rate, wire.most_in_flight) = (60_000, 0);
        wire.now += Duration::from_secs(10);
        wire.upload_for(Duration::from_secs(30));
        assert_eq!(wire.most_in_flight, CHUNK);
    }

    #[test]
    fn a_link_with_little_to_send_does_not_count_as_slow() {
        let mut wire = Wire::new(2_000_000, Duration::from_millis(50), USUAL);
        wire.upload_for(Duration::from_secs(2));
        wire.upload(wire.now + Duration::from_secs(1));
        let window = wire.pacer.window();
        for _ in 0..20 {
            let departure = wire.pacer.on_departure(JOB, false, wire.now);
            wire.now += Duration::from_millis(60);
            wire.pacer.on_acknowledged(departure, wire.now);
        }
        assert_eq!(wire.pacer.window(), window);
    }
}
