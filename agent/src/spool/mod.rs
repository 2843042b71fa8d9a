//! The spool: encrypted jobs that wait for their answer, safe from crashes.
//!
//! A file of records that only grows, until what is live in it is copied into a new one. `record`
//! has the format, `scan` the recovery.
//!
//! Invariants:
//! - a job has a number before it leaves the robot, and a number is never used twice in a session:
//!   where the disk may have lost one, the session takes no more jobs;
//! - an accepted job is on disk before its acceptance is told, and stays until it is removed;
//! - one thread owns the file; whatever waits when it turns around is made durable together, so the
//!   cost of a disk flush is shared under load;
//! - the jobs that wait have at most as many bytes as the limit says;
//! - only ciphertext is kept.

mod file;
mod index;
mod keeper;
mod order;
mod record;
mod scan;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use moai_transport::ids::{JobNumber, SessionId, TaskId};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};

use self::file::SpoolFile;
use self::index::Index;
use self::keeper::{Keeper, Question, Reply, Request};
pub use self::order::Order;
use self::record::{Job, Record};
use crate::clock::{BootId, BootInstant};
use crate::disk::{Disk, SystemDisk};
use crate::onboard::Code;
use crate::secrets::OsEntropy;
use crate::ttl::MAX_LIFETIME;

/// Name of the file in the state directory.
pub const SPOOL_FILE: &str = "spool.log";
const QUEUE_LEN: usize = 256;

/// `[spool]`: how much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpoolLimits {
    /// How many bytes the jobs that wait may have. The file may have twice as many.
    pub max_bytes: u64,
    /// How long a job may wait; sessions end after at most four hours anyway.
    pub max_age: Duration,
}

impl Default for SpoolLimits {
    fn default() -> Self {
        Self { max_bytes: 64 * 1024 * 1024, max_age: MAX_LIFETIME }
    }
}

/// What a spool is called from one power cut, or damage to the file, to the next: as long as all
/// numbers it has given out are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Era(u64);

#[cfg(test)]
impl Era {
    pub(crate) fn of(number: u64) -> Self {
        Self(number)
    }
}

/// A job to be taken in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewJob {
    /// Its session.
    pub session: SessionId,
    /// The era in which the session began.
    pub era: Era,
    /// Its task, who is told if the session does not live to answer.
    pub task: TaskId,
    /// When it was made.
    pub accepted: BootInstant,
    /// The encrypted input.
    pub body: Vec<u8>,
    /// How many bytes the samples had in the clear, for the books.
    pub plain_len: u32,
}

impl NewJob {
    /// The job as it waits once the spool has taken it.
    #[must_use]
    pub fn numbered(self, number: JobNumber) -> SpooledJob {
        let Self { accepted, body, plain_len, .. } = self;
        SpooledJob { number, body, plain_len, accepted }
    }

    fn record(&self, number: JobNumber) -> Record {
        Record::Job(Job {
            session: self.session.clone(),
            number,
            task: self.task.clone(),
            accepted: self.accepted,
            plain_len: self.plain_len,
            body: self.body.clone(),
        })
    }
}

/// A job that waits for its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpooledJob {
    /// Its number within the session.
    pub number: JobNumber,
    /// The encrypted input.
    pub body: Vec<u8>,
    /// How many bytes the samples had in the clear, for the books.
    pub plain_len: u32,
    /// When it was made, on the boot clock of the session's boot.
    pub accepted: BootInstant,
}

/// The jobs of a session.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outstanding {
    /// Those that wait for an answer, oldest first.
    pub jobs: Vec<SpooledJob>,
    /// Those that the disk has lost: while the agent ran, or before it started with records around
    /// them left.
    pub lost: Vec<JobNumber>,
}

/// A job without a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orphan {
    /// The session it had.
    pub session: SessionId,
    /// Its number.
    pub number: JobNumber,
    /// Its task.
    pub task: TaskId,
}

/// What was wrong with a spool file. Everything else in it is as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpoolDamage {
    /// What was found.
    pub problem: String,
    /// The name of a copy, beside the file.
    pub copy: Option<String>,
}

/// Why the spool failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SpoolError {
    /// The file cannot be opened.
    #[error("cannot open {}: {problem}; check the state directory's owner", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        problem: Arc<str>,
    },
    /// The disk refuses.
    #[error("the job spool cannot be written: {0}; check free space and the disk's health")]
    Disk(Arc<str>),
    /// As much waits as may.
    #[error("jobs of {max_bytes} bytes wait for an answer already; this one is dropped")]
    Full {
        /// The limit.
        max_bytes: u64,
    },
    /// The session is older than the last power cut, or than damage to the file: its newest numbers may
    /// be lost, and a number must not come twice.
    #[error("the spool may have lost jobs of this session; it takes no more")]
    NumbersLost,
    /// No job has as many bytes.
    #[error("the job is too large")]
    TooLarge,
    /// The spool's thread has ended; the agent must restart.
    #[error("the job spool has stopped")]
    Stopped,
}

impl SpoolError {
    /// What a job that was not taken is refused with.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Full { .. } => Code::SpoolFull,
            _ => Code::NotSpooled,
        }
    }
}

/// A handle to the spool's owner thread.
#[derive(Clone)]
pub struct Spool {
    requests: mpsc::Sender<Request>,
    max_bytes: Arc<AtomicU64>,
    era: Era,
    trouble: watch::Receiver<Option<String>>,
}

impl Spool {
    /// Opens or creates the spool in `directory` and starts its owner thread. What a cut-off write
    /// has left is dropped, nobody was told that it was taken. `now`, in seconds since 1970, names the
    /// copy of a file that was damaged otherwise.
    ///
    /// # Errors
    /// The file cannot be opened, or no thread can be started.
    pub fn open(
        directory: &Path,
        limits: SpoolLimits,
        boot: &BootId,
        now: u64,
    ) -> Result<(Self, Option<SpoolDamage>), SpoolError> {
        let path = directory.join(SPOOL_FILE);
        let open = |source: io::Error| SpoolError::Open {
            path: path.clone(),
            problem: Arc::from(source.to_string()),
        };
        let (sender, trouble) = watch::channel(None);
        let fresh = OsEntropy::bytes().map_err(|error| open(io::Error::other(error)))?;
        let fresh = Era(u64::from_be_bytes(fresh));
        let disk = Arc::new(SystemDisk);
        let (keeper, damage) =
            keeper(disk, &path, limits, boot.to_string(), fresh, now, sender).map_err(open)?;
        let (era, max_bytes) = (keeper.era(), keeper.max_bytes());
        let (requests, receiver) = mpsc::channel(QUEUE_LEN);
        std::thread::Builder::new()
            .name("spool".to_owned())
            .spawn(move || keeper.run(receiver))
            .map_err(open)?;
        Ok((Self { requests, max_bytes, era, trouble }, damage))
    }

    /// A spool on a disk in memory, served by a task, which ends with its runtime as with a crash.
    #[cfg(test)]
    pub(crate) fn in_memory(
        disk: &crate::disk::memory::MemoryDisk,
        limits: SpoolLimits,
        boot: &BootId,
    ) -> Self {
        let (sender, trouble) = watch::channel(None);
        let fresh = Era(u64::from_be_bytes(OsEntropy::bytes().unwrap()));
        let path = PathBuf::from(SPOOL_FILE);
        let disk = Arc::new(disk.clone());
        let opened = keeper(disk, &path, limits, boot.to_string(), fresh, 0, sender);
        let (mut keeper, damage) = opened.unwrap();
        assert_eq!(damage, None);
        let (era, max_bytes) = (keeper.era(), keeper.max_bytes());
        let (requests, mut receiver) = mpsc::channel(QUEUE_LEN);
        tokio::spawn(async move {
            while let Some(request) = receiver.recv().await {
                keeper.turn(vec![request]);
            }
        });
        Self { requests, max_bytes, era, trouble }
    }

    /// How many bytes the jobs that wait may have from now on; what waits already, stays.
    pub fn limit(&self, max_bytes: u64) {
        self.max_bytes.store(max_bytes, Ordering::Relaxed);
    }

    /// The era: a session keeps that in which it began.
    #[must_use]
    pub fn era(&self) -> Era {
        self.era
    }

    /// Takes a job in and gives it its number.
    ///
    /// # Errors
    /// The spool is full or the disk refuses; the job was not taken.
    pub async fn append(&self, job: NewJob) -> Result<JobNumber, SpoolError> {
        let mut taken = self.append_all(vec![job]).await?;
        taken.pop().unwrap_or(Err(SpoolError::Stopped))
    }

    /// Takes jobs in with one flush of the disk, and says of each its number or why it was not taken.
    /// Once there is no room for one, none behind it is taken.
    ///
    /// # Errors
    /// The spool has stopped; no job was taken.
    pub async fn append_all(
        &self,
        jobs: Vec<NewJob>,
    ) -> Result<Vec<Result<JobNumber, SpoolError>>, SpoolError> {
        self.ask(|reply| Request::Append { jobs, reply }).await
    }

    /// Ends a job: it was answered or given up.
    ///
    /// # Errors
    /// The disk refuses; the job would be sent again after a restart.
    pub async fn remove(&self, session: &SessionId, number: JobNumber) -> Result<(), SpoolError> {
        let session = session.clone();
        self.ask(|reply| Request::Remove { session, number, reply }).await
    }

    /// Drops every job of an ended session, and its numbering.
    ///
    /// # Errors
    /// The disk refuses.
    pub async fn forget(&self, session: &SessionId) -> Result<(), SpoolError> {
        let session = session.clone();
        self.ask(|reply| Request::Forget { session, reply }).await
    }

    /// The jobs of a session.
    ///
    /// # Errors
    /// The spool has stopped.
    pub async fn outstanding(&self, session: &SessionId) -> Result<Outstanding, SpoolError> {
        let session = session.clone();
        self.ask(|reply| Request::Ask(Question::Outstanding { session, reply })).await
    }

    /// How many numbers a session has been given; answered jobs count.
    ///
    /// # Errors
    /// The spool has stopped.
    pub async fn issued(&self, session: &SessionId) -> Result<u64, SpoolError> {
        let session = session.clone();
        self.ask(|reply| Request::Ask(Question::Issued { session, reply })).await
    }

    /// The jobs of all sessions but these. Each is to be removed when somebody has been told.
    ///
    /// # Errors
    /// The spool has stopped.
    pub async fn orphans(&self, sessions: &[SessionId]) -> Result<Vec<Orphan>, SpoolError> {
        let sessions = sessions.to_vec();
        self.ask(|reply| Request::Ask(Question::Orphans { sessions, reply })).await
    }

    /// Waits until the owner thread has come to this question.
    pub async fn alive(&self) {
        // A thread that has ended is told to whoever brings a job.
        let _ = self.ask(|reply| Request::Ask(Question::Alive { reply })).await;
    }

    /// Why the last job was not taken, if it was the disk's fault.
    #[must_use]
    pub fn trouble(&self) -> watch::Receiver<Option<String>> {
        self.trouble.clone()
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, SpoolError> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| SpoolError::Stopped)?;
        answer.await.map_err(|_| SpoolError::Stopped)?
    }
}

fn keeper(
    disk: Arc<dyn Disk>,
    path: &Path,
    limits: SpoolLimits,
    boot: String,
    fresh: Era,
    now: u64,
    trouble: watch::Sender<Option<String>>,
) -> io::Result<(Keeper, Option<SpoolDamage>)> {
    let mut index = Index::default();
    let (file, scanned) = SpoolFile::open(disk, path.to_owned(), &mut |found| index.take(found))?;
    let problem = if scanned.is_foreign {
        Some("it is no spool of this version".to_owned())
    } else if scanned.holes > 0 {
        Some(format!("what was in {} place(s) is lost, jobs or their ends", scanned.holes))
    } else {
        None
    };
    // A number may be gone with what was torn off, though hardly one that anybody was told.
    let is_whole = problem.is_none() && !scanned.is_torn;
    let known = index.era_in(&boot).filter(|_| is_whole);
    let copy = problem.is_some().then(|| file.keep_copy(now));
    let mut keeper = Keeper::new(file, limits, (known.unwrap_or(fresh), boot), index, trouble);
    let damage = problem.zip(copy).map(|(problem, copy)| {
        if let Err(error) = keeper.rewrite() {
            tracing::warn!(%error, "the damaged spool is not written anew yet");
        }
        let copy = copy.unwrap_or_else(|error| {
            tracing::warn!(%error, "no copy of the damaged spool was made");
            None
        });
        SpoolDamage { problem, copy }
    });
    keeper.settle();
    Ok((keeper, damage))
}
