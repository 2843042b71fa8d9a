//! What is left to do when a session has ended: each job that waits has to hear of it.
//!
//! Invariants:
//! - the seed is erased and the keys are wiped before this begins;
//! - jobs are told in the order of their numbers;
//! - the ended session is forgotten only after all its jobs were told: until then a restart goes on
//!   telling.

use std::collections::BTreeMap;
use std::sync::Arc;

use moai_transport::ids::{JobNumber, SessionId};

use super::lifecycle::EndReason;
use super::outbox::{Outbox, Outcome};
use super::{Reports, SessionReport};
use crate::onboard::{Refusal, ReplyTo};
use crate::services::Services;
use crate::vault::EndedFacts;

/// Goes on telling the jobs of a session that ended in an earlier run of the agent.
///
/// # Errors
/// The spool cannot be read.
pub async fn bid(
    services: Arc<Services>,
    id: SessionId,
    facts: EndedFacts,
    reports: Reports,
) -> Result<(), crate::spool::SpoolError> {
    let waiting = services.spool.outstanding(&id).await?;
    let outbox = Outbox::start(Arc::clone(&services), facts.task, id.clone());
    let last = Farewell { services, id, reason: facts.reason, reports };
    let numbers = waiting.jobs.into_iter().map(|job| job.number).chain(waiting.lost);
    let numbers = numbers.map(|number| (number, None)).collect();
    tokio::spawn(last.tell(outbox, numbers, BTreeMap::new()));
    Ok(())
}

/// What became of jobs, and where that is wanted too.
pub(super) type Decided = BTreeMap<JobNumber, (Outcome, Option<ReplyTo>)>;

/// The last words of a session.
pub(super) struct Farewell {
    pub(super) services: Arc<Services>,
    pub(super) id: SessionId,
    pub(super) reason: EndReason,
    pub(super) reports: Reports,
}

impl Farewell {
    /// Tells every job: what was decided before the end as it was decided, the others that they
    /// were not answered.
    pub(super) async fn tell(
        self,
        mut outbox: Outbox,
        waiting: Vec<(JobNumber, Option<ReplyTo>)>,
        decided: Decided,
    ) {
        let session = self.id.to_string();
        let mut outcomes = decided;
        for (number, reply) in waiting {
            let message = format!("the job was not answered: {}", self.reason.text());
            let refusal = Refusal {
                job: Some(number.0),
                session: Some(session.clone()),
                ..Refusal::new(self.reason.code(), message)
            };
            outcomes.entry(number).or_insert((Outcome::Refusal(refusal), reply));
        }
        for (number, (outcome, reply)) in outcomes {
            outbox.push(Some(number), outcome, reply);
        }
        if outbox.close().await {
            self.forget().await;
        }
        // A task that has gone needs no reports.
        let _ = self.reports.send((self.id, SessionReport::Told(self.reason))).await;
    }

    async fn forget(&self) {
        if let Err(error) = self.services.spool.forget(&self.id).await {
            tracing::error!(session = %self.id, %error, "an ended session stays in the spool");
            return;
        }
        if let Err(error) = self.services.forget_record(self.id.clone()).await {
            tracing::error!(session = %self.id, %error, "an ended session is not forgotten yet");
        }
    }
}
