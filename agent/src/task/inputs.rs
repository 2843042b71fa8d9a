//! The way of samples into windows and of windows into the task's session.
//!
//! Invariants:
//! - a message is refused whole or taken whole;
//! - its receipt is confirmed when all windows that it completed are jobs on disk, or are refused.

use std::sync::Arc;

use moai_transport::link::Receipt;
use tokio::time::Instant;

use super::Task;
use crate::onboard::{Code, Refusal, ReplyTo, Samples};
use crate::session::{Input, Place, settle};

impl Task {
    pub(super) async fn input(
        &mut self,
        samples: &Samples,
        reply: Option<ReplyTo>,
        receipt: Option<Receipt>,
        arrived: Instant,
    ) {
        let (receipt, known) = (receipt.map(Arc::new), self.pending.len());
        let refusal = self.collect(samples, reply.as_ref(), arrived).err();
        for input in self.pending.range_mut(known..) {
            input.receipt.clone_from(&receipt);
        }
        if let Some(refusal) = refusal {
            self.refuse(refusal, reply).await;
        }
        settle(receipt);
    }

    /// Puts the windows that the samples complete where they wait for the session.
    fn collect(
        &mut self,
        samples: &Samples,
        reply: Option<&ReplyTo>,
        arrived: Instant,
    ) -> Result<(), Refusal> {
        let Some(work) = &mut self.work else { return Err(self.not_open()) };
        let rows = samples.rows(work.channels).map_err(|refusal| {
            let names = work.purpose.card.window().channels.join(", ");
            let message = format!("the model takes {names}: {}", refusal.message);
            Refusal { message, ..refusal }
        })?;
        for row in rows {
            let (started, plain_len) = (Instant::now(), work.window.plain_len());
            let Some(window) = work.window.push(row).map_err(|error| malformed(&error))? else {
                continue;
            };
            let inputs = work.purpose.card.inputs(&window).map_err(|error| malformed(&error))?;
            let (features, reply) = (started.elapsed(), reply.cloned());
            let (card, receipt) = (Arc::clone(&work.purpose.card), None);
            self.pending.push_back(Input {
                inputs,
                card,
                plain_len,
                arrived,
                features,
                reply,
                receipt,
            });
        }
        Ok(())
    }

    /// The session has a place for a window; none if it has ended, and then the next session takes
    /// the window.
    pub(super) async fn hand_over(&mut self, place: Option<Place>) {
        let current = self.work.as_mut().and_then(|work| work.current.as_mut());
        let (Some(place), Some(current)) = (place, current) else { return };
        if let Some(input) = self.pending.pop_front() {
            current.submit(place, input);
        }
        let is_short = current.is_short();
        if let Some(work) = self.work.as_mut().filter(|work| is_short && !work.renews) {
            work.renews = true;
            self.provide().await;
        }
    }

    /// Windows come back from a session that has ended. The next one takes them if the task still asks
    /// the same model.
    pub(super) async fn take_back(&mut self, returned: Vec<Input>) {
        let card = self.work.as_ref().map(|work| Arc::clone(&work.purpose.card));
        let fits = |input: &Input| card.as_ref().is_some_and(|it| Arc::ptr_eq(it, &input.card));
        let (kept, others): (Vec<_>, Vec<_>) = returned.into_iter().partition(fits);
        for input in kept.into_iter().rev() {
            self.pending.push_front(input);
        }
        for input in others {
            self.refuse(self.not_open(), input.settle()).await;
        }
    }

    /// The task is closed: windows that no session has taken become no jobs.
    pub(super) async fn refuse_pending(&mut self) {
        for input in std::mem::take(&mut self.pending) {
            self.refuse(self.not_open(), input.settle()).await;
        }
    }
}

fn malformed(error: &dyn std::fmt::Display) -> Refusal {
    Refusal::new(Code::Malformed, error.to_string())
}
