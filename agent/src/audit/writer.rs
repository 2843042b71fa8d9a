//! The thread that owns the log.
//!
//! Invariants:
//! - what waits when it turns around is written together;
//! - at most [`MAX_PENDING`] events wait for a disk that refuses; what comes after that is counted.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use moai_tpm::Epoch;
use tokio::sync::{oneshot, watch};

use super::event::AuditEvent;
use super::log::{AuditError, AuditLog, Pending, Place};
use super::refusals::Refusals;
use super::verify::AuditReport;
use crate::clock::Clock;

const MAX_PENDING: usize = 1024;
const MAX_BATCH: usize = 64;
/// How often a disk that refused is tried again, and held refusals are looked at.
const TURN: Duration = Duration::from_secs(5);

pub(super) enum Request {
    /// An event, and whom to tell when the disk has taken it, or has refused once.
    Record(AuditEvent, Option<oneshot::Sender<()>>),
    Verify(oneshot::Sender<Result<AuditReport, String>>),
}

pub(super) struct Writer {
    place: Place,
    epoch: Epoch,
    clock: Arc<dyn Clock>,
    /// Opened at the first turn that finds the disk willing.
    log: Option<AuditLog>,
    pending: VecDeque<Pending>,
    refusals: Refusals,
    /// Events that found the channel or `pending` full.
    lost: Arc<AtomicU64>,
    trouble: watch::Sender<Option<String>>,
}

impl Writer {
    pub(super) fn new(
        place: Place,
        epoch: Epoch,
        clock: Arc<dyn Clock>,
        lost: Arc<AtomicU64>,
        trouble: watch::Sender<Option<String>>,
    ) -> Self {
        Self {
            place,
            epoch,
            clock,
            log: None,
            pending: VecDeque::new(),
            refusals: Refusals::default(),
            lost,
            trouble,
        }
    }

    /// Serves until every handle is gone.
    pub(super) fn run(mut self, requests: &Receiver<Request>) {
        self.turn(Vec::new());
        loop {
            let is_waiting = !self.pending.is_empty()
                || self.trouble.borrow().is_some()
                || self.refusals.is_holding();
            let first = if is_waiting {
                match requests.recv_timeout(TURN) {
                    Ok(request) => Some(request),
                    Err(RecvTimeoutError::Timeout) => None,
                    Err(RecvTimeoutError::Disconnected) => break,
                }
            } else {
                let Ok(request) = requests.recv() else { break };
                Some(request)
            };
            let more = requests.try_iter().take(MAX_BATCH);
            self.turn(first.into_iter().chain(more).collect());
        }
        for event in self.refusals.take_all() {
            self.enqueue(event);
        }
        if self.write().is_err() {
            tracing::error!(waiting = self.pending.len(), "audit entries are lost with the agent");
        }
    }

    /// Takes what came in, writes what is due, and tells who waited.
    pub(super) fn turn(&mut self, requests: Vec<Request>) {
        let mut waiting = Vec::new();
        let mut questions = Vec::new();
        for request in requests {
            match request {
                Request::Record(event, done) => {
                    self.take(event);
                    waiting.extend(done);
                }
                Request::Verify(reply) => questions.push(reply),
            }
        }
        for event in self.refusals.due(self.clock.boot()) {
            self.enqueue(event);
        }
        let result = self.write();
        for done in waiting {
            // Whoever went away needs no answer.
            let _ = done.send(());
        }
        for reply in questions {
            let report = match (&result, &self.log) {
                (_, Some(log)) => log.verify().map_err(|error| error.to_string()),
                (Err(error), None) => Err(error.to_string()),
                (Ok(()), None) => Err("the audit log is not open".to_owned()),
            };
            let _ = reply.send(report);
        }
    }

    fn take(&mut self, event: AuditEvent) {
        let event = match event {
            AuditEvent::FrameRefused { kind, reason, count } => {
                self.refusals.take((kind, reason), count, self.clock.boot())
            }
            event => Some(event),
        };
        if let Some(event) = event {
            self.enqueue(event);
        }
    }

    fn enqueue(&mut self, event: AuditEvent) {
        if self.pending.len() >= MAX_PENDING {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let unix_seconds = self.clock.unix().as_secs();
        self.pending.push_back(Pending { unix_seconds, event });
    }

    fn write(&mut self) -> Result<(), AuditError> {
        let result = self.try_write();
        let text = result.as_ref().err().map(ToString::to_string);
        self.trouble.send_if_modified(|trouble| {
            let changed = *trouble != text;
            if changed {
                if let Some(error) = &text {
                    tracing::error!(%error, "audit entries wait");
                } else {
                    tracing::info!("the audit log is written again");
                }
                trouble.clone_from(&text);
            }
            changed
        });
        result
    }

    fn try_write(&mut self) -> Result<(), AuditError> {
        if self.log.is_none() {
            let unix_seconds = self.clock.unix().as_secs();
            let (log, events) = AuditLog::open(self.place.clone(), self.epoch, unix_seconds)?;
            for event in events.into_iter().rev() {
                self.pending.push_front(Pending { unix_seconds, event });
            }
            self.log = Some(log);
        }
        let Some(log) = &mut self.log else { return Ok(()) };
        log.append(&mut self.pending)?;
        // Counted until there is room for the entry that says so.
        let count = self.lost.swap(0, Ordering::Relaxed);
        if count > 0 {
            let unix_seconds = self.clock.unix().as_secs();
            self.pending
                .push_back(Pending { unix_seconds, event: AuditEvent::EventsLost { count } });
            log.append(&mut self.pending)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
