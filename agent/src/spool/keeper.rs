//! The thread that owns the spool's file.
//!
//! Invariants:
//! - whatever waits when it turns around is made durable together, and nobody is answered before;
//! - a job that the disk refuses was not taken, and takes nothing from those that were;
//! - an end that the disk refuses counts at once, and is written as soon as the disk takes it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use moai_transport::ids::{JobNumber, SessionId};
use tokio::sync::{mpsc, oneshot, watch};

use super::file::SpoolFile;
use super::index::Index;
use super::record::{Job, Record, max_payload_len};
use super::scan::Span;
use super::{Era, NewJob, Orphan, Outstanding, QUEUE_LEN, SpoolError, SpoolLimits, SpooledJob};

/// As much garbage is left lying in a file.
const MIN_GARBAGE: u64 = 1024 * 1024;

pub(super) type Reply<T> = oneshot::Sender<Result<T, SpoolError>>;

pub(super) enum Request {
    Append { jobs: Vec<NewJob>, reply: Reply<Vec<Result<JobNumber, SpoolError>>> },
    Remove { session: SessionId, number: JobNumber, reply: Reply<()> },
    Forget { session: SessionId, reply: Reply<()> },
    Ask(Question),
}

pub(super) enum Question {
    Outstanding { session: SessionId, reply: Reply<Outstanding> },
    Issued { session: SessionId, reply: Reply<u64> },
    Orphans { sessions: Vec<SessionId>, reply: Reply<Vec<Orphan>> },
    Alive { reply: Reply<()> },
}

/// A job on its way to the disk.
struct Numbered {
    session: SessionId,
    number: JobNumber,
    /// Among the jobs of the same batch.
    position: usize,
}

/// Whom to answer when the records are durable.
enum Waiting {
    Jobs {
        reply: Reply<Vec<Result<JobNumber, SpoolError>>>,
        jobs: Vec<Result<Numbered, SpoolError>>,
    },
    End(Reply<()>),
}

pub(super) struct Keeper {
    file: SpoolFile,
    max_bytes: Arc<AtomicU64>,
    era: Era,
    index: Index,
    /// What is to be in the file before the next job: who has opened it, and ends.
    owed: Vec<Record>,
    /// Garbage that sets a rewriting off.
    garbage_limit: u64,
    trouble: watch::Sender<Option<String>>,
}

impl Keeper {
    pub(super) fn new(
        file: SpoolFile,
        limits: SpoolLimits,
        (era, boot): (Era, String),
        mut index: Index,
        trouble: watch::Sender<Option<String>>,
    ) -> Self {
        index.opened = Some((era, boot.clone()));
        let owed = vec![Record::Opened { era, boot }];
        let max_bytes = Arc::new(AtomicU64::new(limits.max_bytes));
        Self { file, max_bytes, era, index, owed, garbage_limit: MIN_GARBAGE, trouble }
    }

    pub(super) fn era(&self) -> Era {
        self.era
    }

    /// The limit, which may change at any time.
    pub(super) fn max_bytes(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.max_bytes)
    }

    /// Writes what is owed. What the disk refuses now goes before the first job.
    pub(super) fn settle(&mut self) {
        self.commit(&[], Vec::new());
    }

    /// Serves until every handle is gone.
    pub(super) fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        while let Some(first) = requests.blocking_recv() {
            let mut batch = vec![first];
            while batch.len() < QUEUE_LEN {
                let Ok(next) = requests.try_recv() else { break };
                batch.push(next);
            }
            self.turn(batch);
        }
    }

    pub(super) fn turn(&mut self, batch: Vec<Request>) {
        let mut jobs = Vec::new();
        let mut waiting = Vec::new();
        let mut questions = Vec::new();
        let mut promised = 0;
        for request in batch {
            match request {
                Request::Append { jobs: new, reply } => {
                    let mut numbered: Vec<Result<Numbered, SpoolError>> = Vec::new();
                    for job in new {
                        let next = match numbered.last() {
                            Some(Err(full @ SpoolError::Full { .. })) => Err(full.clone()),
                            _ => self.number(&job, &mut promised, &mut jobs),
                        };
                        numbered.push(next);
                    }
                    waiting.push(Waiting::Jobs { reply, jobs: numbered });
                }
                Request::Remove { session, number, reply } => {
                    self.index.missing.remove(&(session.clone(), number));
                    if self.index.remove(session.clone(), number).is_some() {
                        self.owed.push(Record::Removed { session, number });
                    }
                    waiting.push(Waiting::End(reply));
                }
                Request::Forget { session, reply } => {
                    if self.index.forget(&session) {
                        self.owed.push(Record::Forgotten { session });
                    }
                    waiting.push(Waiting::End(reply));
                }
                Request::Ask(question) => questions.push(question),
            }
        }
        self.commit(&jobs, waiting);
        for question in questions {
            self.answer(question);
        }
        self.tidy();
    }

    /// Gives a job its number, if there is room for it, and puts it to those that are to be written.
    fn number(
        &mut self,
        job: &NewJob,
        promised: &mut u64,
        jobs: &mut Vec<Record>,
    ) -> Result<Numbered, SpoolError> {
        if job.era != self.era {
            return Err(SpoolError::NumbersLost);
        }
        let mut record = job.record(JobNumber(0));
        self.admit(&record, *promised)?;
        *promised += record.len() as u64;
        let session = job.session.clone();
        let number = self.index.next(&session);
        if let Record::Job(job) = &mut record {
            job.number = number;
        }
        let position = jobs.len();
        jobs.push(record);
        Ok(Numbered { session, number, position })
    }

    fn admit(&self, record: &Record, promised: u64) -> Result<(), SpoolError> {
        if record.payload().len() > max_payload_len() {
            return Err(SpoolError::TooLarge);
        }
        let max_bytes = self.max_bytes.load(Ordering::Relaxed);
        if self.index.live + promised + record.len() as u64 > max_bytes {
            return Err(SpoolError::Full { max_bytes });
        }
        Ok(())
    }

    /// Ends go first: nothing in one batch ends a job of the same batch, and a session that is
    /// forgotten takes no more jobs.
    fn commit(&mut self, jobs: &[Record], waiting: Vec<Waiting>) {
        let ended = self.owed.len();
        let records: Vec<Record> = self.owed.iter().chain(jobs).cloned().collect();
        let result = self.append(&records);
        if result.is_ok() {
            self.owed.clear();
        } else if !jobs.is_empty() && ended > 0 {
            // A disk that is full may still have room for the short records.
            let owed = std::mem::take(&mut self.owed);
            if self.append(&owed).is_err() {
                self.owed = owed;
            }
        }
        if !records.is_empty() {
            self.tell(result.as_ref().err());
        }
        for waiting in waiting {
            match (waiting, &result) {
                (Waiting::Jobs { reply, jobs }, result) => {
                    let mut written = |job: Numbered| {
                        let Numbered { session, number, position } = job;
                        let spans = result.as_ref().map_err(refused)?;
                        self.index.insert(session, number, spans[ended + position]);
                        Ok(number)
                    };
                    let written = jobs.into_iter().map(|job| job.and_then(&mut written)).collect();
                    answer(reply, Ok(written));
                }
                (Waiting::End(reply), Err(error)) if !self.owed.is_empty() => {
                    answer(reply, Err(refused(error)));
                }
                (Waiting::End(reply), _) => answer(reply, Ok(())),
            }
        }
    }

    fn append(&mut self, records: &[Record]) -> io::Result<Vec<Span>> {
        if records.is_empty() {
            return Ok(Vec::new());
        }
        if self.file.is_lost() {
            self.rewrite()?;
        }
        self.file.append(records)
    }

    fn answer(&mut self, question: Question) {
        match question {
            Question::Outstanding { session, reply } => {
                let mut outstanding = Outstanding::default();
                for (number, span) in self.index.of(&session) {
                    match self.read(span) {
                        Some(job) => outstanding.jobs.push(SpooledJob {
                            number,
                            body: job.body,
                            plain_len: job.plain_len,
                            accepted: job.accepted,
                        }),
                        None => outstanding.lost.push(number),
                    }
                }
                let missing = self.index.missing.iter().filter(|(of, _)| *of == session);
                outstanding.lost.extend(missing.map(|(_, number)| *number));
                answer(reply, Ok(outstanding));
            }
            Question::Issued { session, reply } => {
                let newest = self.index.numbers.get(&session);
                answer(reply, Ok(newest.map_or(0, |newest| newest.0)));
            }
            Question::Alive { reply } => answer(reply, Ok(())),
            Question::Orphans { sessions, reply } => {
                let spans = self.index.jobs.iter();
                let orphans = spans.filter(|((session, _), _)| !sessions.contains(session));
                let read = orphans.filter_map(|((session, number), span)| {
                    let task = self.read(*span)?.task;
                    Some(Orphan { session: session.clone(), number: *number, task })
                });
                let orphans: Vec<Orphan> = read.collect();
                // The next file is without them.
                self.index.numbers.retain(|session, _| sessions.contains(session));
                answer(reply, Ok(orphans));
            }
        }
    }

    /// `None` if the job is not there any more as it was written.
    fn read(&self, span: Span) -> Option<Job> {
        match self.file.payload(span) {
            Ok(payload) => match Record::parse(&payload?)? {
                Record::Job(job) => Some(job),
                _ => None,
            },
            Err(error) => {
                tracing::error!(%error, "the spool cannot be read");
                None
            }
        }
    }

    /// Makes the file short again when most of it is garbage.
    fn tidy(&mut self) {
        let garbage = self.file.length().saturating_sub(self.index.live);
        if garbage > self.garbage_limit.max(self.index.live) {
            match self.rewrite() {
                Ok(()) => self.garbage_limit = MIN_GARBAGE,
                Err(error) => {
                    tracing::warn!(%error, "the spool is not compacted yet");
                    self.garbage_limit = garbage + MIN_GARBAGE;
                }
            }
        }
    }

    /// Copies what is live into a new file.
    ///
    /// # Errors
    /// The disk refuses.
    pub(super) fn rewrite(&mut self) -> io::Result<()> {
        let keys: Vec<(SessionId, JobNumber)> = self.index.jobs.keys().cloned().collect();
        let spans: Vec<Span> = self.index.jobs.values().copied().collect();
        let moved = self.file.rewrite(&self.index.facts(), &spans)?;
        for (key, span) in keys.into_iter().zip(moved) {
            if let Some(span) = span {
                self.index.jobs.insert(key, span);
            } else {
                tracing::error!(session = %key.0, number = %key.1, "a spooled job is damaged");
                self.index.remove(key.0, key.1);
            }
        }
        // What had ended is not in the new file.
        self.owed.clear();
        Ok(())
    }

    fn tell(&self, error: Option<&io::Error>) {
        let text = error.map(|error| refused(error).to_string());
        self.trouble.send_if_modified(|trouble| {
            let changed = *trouble != text;
            trouble.clone_from(&text);
            changed
        });
    }
}

fn refused(error: &io::Error) -> SpoolError {
    SpoolError::Disk(Arc::from(error.to_string()))
}

fn answer<T>(reply: Reply<T>, result: Result<T, SpoolError>) {
    // A caller that went away needs no answer.
    drop(reply.send(result));
}
