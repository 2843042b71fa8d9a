//! systemd's watchdog, fed only while the parts it guards make progress.
//!
//! A guarded part is a loop. At every turn of the watchdog each is asked a question, which it answers
//! between two pieces of its work; a loop that hangs, or whose thread does, answers no more.
//!
//! Invariants:
//! - the watchdog is fed only if every guarded part has answered the question before;
//! - a part that has not is named, in the log and in the status line;
//! - a question never waits for a part, and an answer never makes one wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

/// So many questions are asked before systemd loses its patience: a part has at least half of the
/// time for an answer.
const TURNS: u32 = 4;

/// Asks, and says whether the watchdog may be fed.
pub struct Watchdog {
    turns: Option<tokio::time::Interval>,
    question: watch::Sender<u64>,
    parts: Vec<Part>,
    observe: fn(&'static str),
}

struct Part {
    name: &'static str,
    answered: Arc<AtomicU64>,
}

/// Where a guarded part is asked.
pub struct Pulse {
    name: &'static str,
    question: watch::Receiver<u64>,
    answered: Arc<AtomicU64>,
    observe: fn(&'static str),
}

/// A turn of the watchdog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Turn {
    /// Every part has answered.
    Alive,
    /// These have not.
    Hangs(Vec<&'static str>),
}

impl Watchdog {
    /// For a supervisor that loses its patience after `timeout`; there may be none. `observe` is told
    /// by each part that is about to answer.
    #[must_use]
    pub fn new(timeout: Option<Duration>, observe: fn(&'static str)) -> Self {
        let turns = timeout.map(|timeout| {
            let every = (timeout / TURNS).max(Duration::from_millis(1));
            let mut turns = tokio::time::interval_at(Instant::now() + every, every);
            turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
            turns
        });
        Self { turns, question: watch::Sender::new(0), parts: Vec::new(), observe }
    }

    /// Guards a part from now on.
    pub fn guard(&mut self, name: &'static str) -> Pulse {
        let answered = Arc::new(AtomicU64::new(*self.question.borrow()));
        self.parts.push(Part { name, answered: Arc::clone(&answered) });
        Pulse { name, question: self.question.subscribe(), answered, observe: self.observe }
    }

    /// Waits for the next turn; for ever where nobody wants to be fed. Nothing is lost if the wait
    /// is given up.
    pub async fn turn(&mut self) -> Turn {
        match &mut self.turns {
            None => std::future::pending().await,
            Some(turns) => turns.tick().await,
        };
        let asked = *self.question.borrow();
        let hangs: Vec<_> = self
            .parts
            .iter()
            .filter(|part| part.answered.load(Ordering::Acquire) < asked)
            .map(|part| part.name)
            .collect();
        if hangs.is_empty() {
            self.question.send_modify(|question| *question += 1);
            Turn::Alive
        } else {
            Turn::Hangs(hangs)
        }
    }
}

impl Pulse {
    /// Waits for a question and answers it; for ever when the watchdog has gone. Nothing is lost if
    /// the wait is given up.
    pub async fn beat(&mut self) {
        self.asked().await;
        self.answer();
    }

    /// Answers each question after `probe`, for a part that has a queue of its own to ask through.
    pub async fn relay<F: Future>(mut self, probe: impl Fn() -> F) {
        loop {
            self.asked().await;
            probe().await;
            self.answer();
        }
    }

    async fn asked(&mut self) {
        if self.question.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    fn answer(&self) {
        (self.observe)(self.name);
        self.answered.store(*self.question.borrow(), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_mins(1);

    #[tokio::test(start_paused = true)]
    async fn it_is_fed_while_all_answer_and_names_who_does_not() {
        let mut watchdog = Watchdog::new(Some(TIMEOUT), |_| {});
        let (mut first, mut second) = (watchdog.guard("first"), watchdog.guard("second"));
        let start = Instant::now();
        assert_eq!(watchdog.turn().await, Turn::Alive);
        assert_eq!(start.elapsed(), TIMEOUT / TURNS);
        first.beat().await;
        second.beat().await;
        assert_eq!(watchdog.turn().await, Turn::Alive);
        first.beat().await;
        assert_eq!(watchdog.turn().await, Turn::Hangs(vec!["second"]));
        assert_eq!(watchdog.turn().await, Turn::Hangs(vec!["second"]));
        // Slow is not dead.
        second.beat().await;
        assert_eq!(watchdog.turn().await, Turn::Alive);
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_that_is_asked_through_its_queue_answers_when_that_moves() {
        let mut watchdog = Watchdog::new(Some(TIMEOUT), |_| {});
        let moves = Arc::new(tokio::sync::Semaphore::new(1));
        let pulse = watchdog.guard("queue");
        let probed = Arc::clone(&moves);
        tokio::spawn(pulse.relay(move || {
            let moves = Arc::clone(&probed);
            async move { moves.acquire_owned().await.unwrap().forget() }
        }));
        assert_eq!(watchdog.turn().await, Turn::Alive);
        assert_eq!(watchdog.turn().await, Turn::Alive);
        assert_eq!(watchdog.turn().await, Turn::Hangs(vec!["queue"]));
        moves.add_permits(1);
        assert_eq!(watchdog.turn().await, Turn::Alive);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_supervisor_there_is_no_turn() {
        let mut watchdog = Watchdog::new(None, |_| {});
        let waited = tokio::time::timeout(TIMEOUT * 100, watchdog.turn()).await;
        assert!(waited.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_that_is_given_up_loses_no_question() {
        let mut watchdog = Watchdog::new(Some(TIMEOUT), |_| {});
        let mut pulse = watchdog.guard("part");
        assert_eq!(watchdog.turn().await, Turn::Alive);
        {
            let mut beat = std::pin::pin!(pulse.beat());
            tokio::select! {
                biased;
                () = std::future::ready(()) => {}
                () = &mut beat => {}
            }
        }
        pulse.beat().await;
        assert_eq!(watchdog.turn().await, Turn::Alive);
    }
}
