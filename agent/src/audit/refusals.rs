//! Refused frames, so many that they must not fill the log: whoever can send frames can send
//! millions.
//!
//! Invariants:
//! - the first of a kind gets an entry at once. What follows is counted, and the count gets one
//!   entry after a pause of one minute, then two, four, up to an hour; an hour without any begins
//!   anew;
//! - at most [`MAX_CLASSES`] kinds are told apart, so at most as many entries are made an hour, and
//!   the default log holds more than a month of them.

use std::collections::BTreeMap;
use std::time::Duration;

use super::event::AuditEvent;
use crate::clock::BootInstant;

const MAX_CLASSES: usize = 24;
const FIRST_PAUSE: Duration = Duration::from_mins(1);
const LONGEST_PAUSE: Duration = Duration::from_hours(1);

type Class = (&'static str, &'static str);
const OTHER: Class = ("other", "other");

/// Counts refusals and says when they get an entry.
#[derive(Default)]
pub(super) struct Refusals(BTreeMap<Class, Pace>);

struct Pace {
    held: u64,
    pause: Duration,
    until: BootInstant,
}

impl Refusals {
    /// Takes a refusal in; the entry to make at once, if any.
    pub(super) fn take(
        &mut self,
        class: Class,
        count: u64,
        now: BootInstant,
    ) -> Option<AuditEvent> {
        self.0.retain(|_, pace| pace.held > 0 || now < pace.until.after(LONGEST_PAUSE));
        let is_known = self.0.contains_key(&class) || self.0.len() < MAX_CLASSES;
        let class = if is_known { class } else { OTHER };
        if let Some(pace) = self.0.get_mut(&class) {
            pace.held = pace.held.saturating_add(count);
            return None;
        }
        let until = now.after(FIRST_PAUSE);
        self.0.insert(class, Pace { held: 0, pause: FIRST_PAUSE, until });
        Some(event(class, count))
    }

    /// The entries that are due.
    pub(super) fn due(&mut self, now: BootInstant) -> Vec<AuditEvent> {
        let mut events = Vec::new();
        for (class, pace) in &mut self.0 {
            if pace.held > 0 && pace.until <= now {
                events.push(event(*class, std::mem::take(&mut pace.held)));
                pace.pause = (pace.pause * 2).min(LONGEST_PAUSE);
                pace.until = now.after(pace.pause);
            }
        }
        events
    }

    /// Everything that is held, because the agent stops.
    pub(super) fn take_all(&mut self) -> Vec<AuditEvent> {
        let held = std::mem::take(&mut self.0).into_iter().filter(|(_, pace)| pace.held > 0);
        held.map(|(class, pace)| event(class, pace.held)).collect()
    }

    /// Whether there may be something due later.
    pub(super) fn is_holding(&self) -> bool {
        self.0.values().any(|pace| pace.held > 0)
    }
}

fn event((kind, reason): Class, count: u64) -> AuditEvent {
    AuditEvent::FrameRefused { kind, reason, count }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORGED: Class = ("result", "signature");

    fn minutes(minutes: u64) -> BootInstant {
        BootInstant(minutes * 60_000)
    }

    #[test]
    fn a_flood_becomes_a_few_entries_that_count_all_of_it() {
        let mut refusals = Refusals::default();
        let mut entries = Vec::new();
        let mut sent = 0;
        for minute in 0..24 * 60 {
            for _ in 0..100 {
                entries.extend(refusals.take(FORGED, 1, minutes(minute)));
                sent += 1;
            }
            entries.extend(refusals.due(minutes(minute)));
        }
        entries.extend(refusals.take_all());
        assert!((24..32).contains(&entries.len()), "{} entries", entries.len());
        let counted: u64 = entries
            .iter()
            .map(|entry| match entry {
                AuditEvent::FrameRefused { kind: "result", reason: "signature", count } => *count,
                other => panic!("{other:?}"),
            })
            .sum();
        assert_eq!(counted, sent);
    }

    #[test]
    fn after_an_hour_of_silence_the_next_one_is_told_at_once() {
        let mut refusals = Refusals::default();
        assert!(refusals.take(FORGED, 1, minutes(0)).is_some());
        assert!(refusals.take(FORGED, 1, minutes(0)).is_none());
        assert!(refusals.is_holding());
        assert_eq!(refusals.due(minutes(1)).len(), 1);
        assert!(refusals.take(FORGED, 1, minutes(60)).is_none());
        assert_eq!(refusals.due(minutes(60)).len(), 1);
        assert!(refusals.take(FORGED, 1, minutes(130)).is_some());
    }

    #[test]
    fn kinds_without_end_are_put_together() {
        let mut refusals = Refusals::default();
        let mut at_once = 0;
        for n in 0..1000 {
            let reason: &'static str = Box::leak(n.to_string().into_boxed_str());
            at_once += usize::from(refusals.take(("result", reason), 1, minutes(0)).is_some());
        }
        assert_eq!(at_once, MAX_CLASSES + 1);
        assert_eq!(refusals.due(minutes(2)).len(), 1);
    }
}
