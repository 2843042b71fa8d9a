//! Samples that came faster than they were taken.
//!
//! Invariants:
//! - every dropped sample is counted, also those that had waited for the rest of their window;
//! - onboard software is told at most once a second, with the number.

use std::time::Duration;

use tokio::time::Instant;

use super::Task;
use crate::onboard::{Code, Refusal};
use crate::throttle::Throttle;

/// Health says that samples are dropped until none was for so long.
const QUIET_AFTER: Duration = Duration::from_secs(10);

/// What was dropped and not told yet.
#[derive(Default)]
pub(super) struct Dropping {
    untold: Throttle,
    last: Option<Instant>,
}

impl Dropping {
    fn note(&mut self, samples: u64, now: Instant) {
        self.untold.note(samples);
        self.last = Some(now);
    }

    /// When there is something to tell or to take back.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        self.untold.due(now).or(self.last.map(|last| last + QUIET_AFTER))
    }
}

impl Task {
    /// So many values were dropped: what follows does not continue the window under way.
    pub(super) async fn gap(&mut self, values: u64) {
        let Some(work) = &mut self.work else {
            // They would have been refused one by one.
            return self.refuse(self.not_open(), None).await;
        };
        let samples = values.div_ceil(work.channels.get() as u64) + work.window.restart() as u64;
        self.dropping.note(samples, Instant::now());
        self.services.board.update(&self.id, |status| status.dropped_samples += samples);
        let reason = "samples come faster than they can be computed on, the oldest are dropped";
        self.services.conditions.set(&self.drops_condition(), Some(reason.to_owned()));
        self.tell_dropped().await;
    }

    /// Tells what is due.
    pub(super) async fn tell_dropped(&mut self) {
        let now = Instant::now();
        if let Some(samples) = self.dropping.untold.take(now) {
            let message = format!(
                "samples come faster than they are taken: {samples} were dropped, the oldest first; \
                 slow down, or see `moai-agent status` for what holds the task up"
            );
            let refusal =
                Refusal { count: Some(samples), ..Refusal::new(Code::SamplesDropped, message) };
            self.announcer.refuse(refusal, Vec::new()).await;
        }
        if self.dropping.last.is_some_and(|last| last + QUIET_AFTER <= now) {
            self.dropping.last = None;
            self.services.conditions.set(&self.drops_condition(), None);
        }
    }

    fn drops_condition(&self) -> String {
        format!("inputs of task {}", self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn drops_are_told_at_most_once_a_second_and_taken_back_after_ten() {
        let (mut dropping, start) = (Dropping::default(), Instant::now());
        assert_eq!(dropping.due(start), None);
        dropping.note(3, start);
        assert_eq!(dropping.due(start), Some(start));
        assert_eq!(dropping.untold.take(start), Some(3));
        assert_eq!(dropping.due(start), Some(start + QUIET_AFTER));
        dropping.note(1, start);
        assert_eq!(dropping.due(start), Some(start + Duration::from_secs(1)));
    }
}
