//! What the spool's file says: which jobs wait and where, and the newest number of each session.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use moai_transport::ids::{JobNumber, SessionId};

use super::Era;
use super::record::{Job, Record};
use super::scan::{Found, Span};

/// At most so many jobs are reported for one hole; a session's numbers go no higher.
const MAX_MISSING: u64 = moai_transport::message::MAX_JOBS;

/// What the file says.
#[derive(Default)]
pub(super) struct Index {
    /// The era and the boot in which the file was last opened.
    pub(super) opened: Option<(Era, String)>,
    pub(super) jobs: BTreeMap<(SessionId, JobNumber), Span>,
    /// The newest number of each session.
    pub(super) numbers: HashMap<SessionId, JobNumber>,
    /// Numbers that were given out and of which a hole has left nothing: jobs that are lost, and
    /// perhaps some that had ended.
    pub(super) missing: BTreeSet<(SessionId, JobNumber)>,
    /// Holes so far, and how many there were when a session's newest number was read.
    holes: u64,
    holes_before: HashMap<SessionId, u64>,
    /// Bytes of all jobs.
    pub(super) live: u64,
}

impl Index {
    /// Takes in what the file has.
    pub(super) fn take(&mut self, found: Found) {
        let Found::Record(record, span) = found else {
            self.holes += 1;
            return;
        };
        match record {
            Record::Opened { era, boot } => self.opened = Some((era, boot)),
            Record::Numbers { session, newest } => {
                self.holes_before.insert(session.clone(), self.holes);
                self.count(session, newest);
            }
            Record::Job(Job { session, number, .. }) => {
                self.look_back(&session, number);
                self.insert(session, number, span);
            }
            Record::Removed { session, number } => {
                self.look_back(&session, number);
                if self.holes > 0 {
                    self.count(session.clone(), number);
                }
                self.missing.remove(&(session.clone(), number));
                self.remove(session, number);
            }
            Record::Forgotten { session } => drop(self.forget(&session)),
        }
    }

    /// Numbers come in order: what was skipped over a hole is missing. Without one it was given to a
    /// job that the disk refused, and before a session's first record nothing is known.
    fn look_back(&mut self, session: &SessionId, number: JobNumber) {
        let newest = self.numbers.get(session).copied();
        if newest.is_some_and(|newest| number <= newest) {
            return;
        }
        let before = self.holes_before.insert(session.clone(), self.holes);
        let Some(newest) = newest else { return };
        if before.is_some_and(|before| before < self.holes) && number.0 <= MAX_MISSING {
            let skipped = (newest.0 + 1)..number.0;
            self.missing.extend(skipped.map(|number| (session.clone(), JobNumber(number))));
        }
    }

    /// The era, if the file was last opened in this boot. What was written since is there then,
    /// whatever the disk makes of a flush: it comes out of memory.
    pub(super) fn era_in(&self, boot: &str) -> Option<Era> {
        self.opened.as_ref().filter(|(_, opened)| opened == boot).map(|(era, _)| *era)
    }

    pub(super) fn count(&mut self, session: SessionId, number: JobNumber) {
        let newest = self.numbers.entry(session).or_default();
        *newest = number.max(*newest);
    }

    pub(super) fn insert(&mut self, session: SessionId, number: JobNumber, span: Span) {
        self.count(session.clone(), number);
        self.live += span.len as u64;
        self.jobs.insert((session, number), span);
    }

    pub(super) fn remove(&mut self, session: SessionId, number: JobNumber) -> Option<Span> {
        let span = self.jobs.remove(&(session, number))?;
        self.live -= span.len as u64;
        Some(span)
    }

    pub(super) fn of(&self, session: &SessionId) -> Vec<(JobNumber, Span)> {
        let first = (session.clone(), JobNumber(0));
        let last = (session.clone(), JobNumber(u64::MAX));
        self.jobs.range(first..=last).map(|((_, number), span)| (*number, *span)).collect()
    }

    pub(super) fn forget(&mut self, session: &SessionId) -> bool {
        let is_known = self.numbers.remove(session).is_some();
        self.missing.retain(|(of, _)| of != session);
        let jobs = self.of(session);
        for (number, _) in &jobs {
            self.remove(session.clone(), *number);
        }
        is_known
    }

    pub(super) fn next(&mut self, session: &SessionId) -> JobNumber {
        let newest = self.numbers.entry(session.clone()).or_default();
        newest.0 += 1;
        *newest
    }

    /// What a new file begins with.
    pub(super) fn facts(&self) -> Vec<Record> {
        let opened = self.opened.clone();
        let opened = opened.map(|(era, boot)| Record::Opened { era, boot });
        let numbers = self.numbers.iter();
        let numbers = numbers
            .map(|(session, newest)| Record::Numbers { session: session.clone(), newest: *newest });
        opened.into_iter().chain(numbers).collect()
    }
}
