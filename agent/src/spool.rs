//! The spool: encrypted jobs that wait for their answer, safe from crashes.
//!
//! Invariants:
//! - a job has a number before it leaves the robot, and a number is never used twice in a session;
//! - an accepted job is on disk before its acceptance is told, and stays until it is removed;
//! - one thread owns the file; whatever waits when it turns around is committed together, so the
//!   cost of a disk flush is shared under load;
//! - only ciphertext is kept.

use std::path::Path;

use moai_transport::ids::{JobNumber, SessionId};
use redb::{Database, ReadableTable, TableDefinition};
use tokio::sync::{mpsc, oneshot};

use crate::store::{self, StoreError};

const JOBS: TableDefinition<'_, (u128, u64), (u32, &[u8])> = TableDefinition::new("jobs");
const NUMBERS: TableDefinition<'_, u128, u64> = TableDefinition::new("numbers");
const QUEUE_LEN: usize = 256;

/// A job that waits for its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpooledJob {
    /// Its number within the session, from 1.
    pub number: JobNumber,
    /// The encrypted input.
    pub body: Vec<u8>,
    /// How many bytes the samples had in the clear, for the books.
    pub plain_len: u32,
}

/// Why the spool failed.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The file failed.
    #[error("the job spool: {0}")]
    Store(#[from] StoreError),
    /// The spool's thread has ended; the agent must restart.
    #[error("the job spool has stopped")]
    Stopped,
}

enum Request {
    Append { session: u128, body: Vec<u8>, plain_len: u32, reply: Reply<JobNumber> },
    Remove { session: u128, number: u64, reply: Reply<()> },
    Forget { session: u128, reply: Reply<()> },
    Outstanding { session: u128, reply: Reply<Vec<SpooledJob>> },
    Retain { sessions: Vec<u128>, reply: Reply<usize> },
}

type Reply<T> = oneshot::Sender<Result<T, SpoolError>>;

/// A handle to the spool's owner thread.
#[derive(Clone)]
pub struct Spool {
    requests: mpsc::Sender<Request>,
}

impl Spool {
    /// Opens or creates the spool file and starts its owner thread.
    ///
    /// # Errors
    /// The file cannot be opened or is no spool, or no thread can be started.
    pub fn open(path: &Path) -> Result<Self, SpoolError> {
        let database = store::open(path)?;
        let (requests, receiver) = mpsc::channel(QUEUE_LEN);
        std::thread::Builder::new()
            .name("spool".to_owned())
            .spawn(move || serve(&database, receiver))
            .map_err(|source| StoreError::Open { path: path.to_owned(), source })?;
        Ok(Self { requests })
    }

    /// Takes a job in and gives it its number.
    ///
    /// # Errors
    /// The disk refuses; the job was not taken.
    pub async fn append(
        &self,
        session: &SessionId,
        body: Vec<u8>,
        plain_len: u32,
    ) -> Result<JobNumber, SpoolError> {
        let session = key(session);
        self.ask(|reply| Request::Append { session, body, plain_len, reply }).await
    }

    /// Ends a job: it was answered or given up.
    ///
    /// # Errors
    /// The disk refuses; the job would be sent again after a restart.
    pub async fn remove(&self, session: &SessionId, number: JobNumber) -> Result<(), SpoolError> {
        let session = key(session);
        self.ask(|reply| Request::Remove { session, number: number.0, reply }).await
    }

    /// Drops every job of an ended session, and its numbering.
    ///
    /// # Errors
    /// The disk refuses.
    pub async fn forget(&self, session: &SessionId) -> Result<(), SpoolError> {
        let session = key(session);
        self.ask(|reply| Request::Forget { session, reply }).await
    }

    /// The jobs of a session that wait for an answer, oldest first.
    ///
    /// # Errors
    /// The disk refuses.
    pub async fn outstanding(&self, session: &SessionId) -> Result<Vec<SpooledJob>, SpoolError> {
        let session = key(session);
        self.ask(|reply| Request::Outstanding { session, reply }).await
    }

    /// Drops the jobs of all sessions but these; returns how many were dropped.
    ///
    /// # Errors
    /// The disk refuses.
    pub async fn retain(&self, sessions: &[SessionId]) -> Result<usize, SpoolError> {
        let sessions = sessions.iter().map(key).collect();
        self.ask(|reply| Request::Retain { sessions, reply }).await
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, SpoolError> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| SpoolError::Stopped)?;
        answer.await.map_err(|_| SpoolError::Stopped)?
    }
}

fn key(session: &SessionId) -> u128 {
    u128::from_be_bytes(*session.as_bytes())
}

fn serve(database: &Database, mut requests: mpsc::Receiver<Request>) {
    while let Some(first) = requests.blocking_recv() {
        let mut batch = vec![first];
        while batch.len() < QUEUE_LEN {
            let Ok(next) = requests.try_recv() else { break };
            batch.push(next);
        }
        commit(database, batch);
    }
}

/// What to answer once the transaction that covers it is durable.
type Answer = Box<dyn FnOnce(Result<(), SpoolError>)>;

/// Applies a batch in one transaction; nobody is answered before it is durable.
fn commit(database: &Database, batch: Vec<Request>) {
    let mut answers: Vec<Answer> = Vec::new();
    let result = apply(database, batch, &mut answers);
    let failure = result.err().map(|error| error.to_string());
    for answer in answers {
        answer(match &failure {
            None => Ok(()),
            Some(text) => Err(SpoolError::Store(StoreError::Transaction(Box::new(
                redb::Error::Io(std::io::Error::other(text.clone())),
            )))),
        });
    }
}

fn apply(
    database: &Database,
    batch: Vec<Request>,
    answers: &mut Vec<Answer>,
) -> Result<(), StoreError> {
    fn later<T: 'static>(reply: Reply<T>, value: T) -> Answer {
        // A caller that went away needs no answer.
        Box::new(move |durable| drop(reply.send(durable.map(|()| value))))
    }
    let transaction = database.begin_write()?;
    {
        let mut jobs = transaction.open_table(JOBS)?;
        let mut numbers = transaction.open_table(NUMBERS)?;
        for request in batch {
            match request {
                Request::Append { session, body, plain_len, reply } => {
                    let number = numbers.get(session)?.map_or(0, |last| last.value()) + 1;
                    numbers.insert(session, number)?;
                    jobs.insert((session, number), (plain_len, body.as_slice()))?;
                    answers.push(later(reply, JobNumber(number)));
                }
                Request::Remove { session, number, reply } => {
                    jobs.remove((session, number))?;
                    answers.push(later(reply, ()));
                }
                Request::Forget { session, reply } => {
                    numbers.remove(session)?;
                    jobs.retain_in((session, 0)..=(session, u64::MAX), |_, _| false)?;
                    answers.push(later(reply, ()));
                }
                Request::Retain { sessions, reply } => {
                    let mut dropped = 0;
                    jobs.retain(|(session, _), _| {
                        let keep = sessions.contains(&session);
                        dropped += usize::from(!keep);
                        keep
                    })?;
                    numbers.retain(|session, _| sessions.contains(&session))?;
                    answers.push(later(reply, dropped));
                }
                Request::Outstanding { session, reply } => {
                    let mut found = Vec::new();
                    for row in jobs.range((session, 0)..=(session, u64::MAX))? {
                        let (key, value) = row?;
                        let (plain_len, body) = value.value();
                        let number = JobNumber(key.value().1);
                        found.push(SpooledJob { number, body: body.to_vec(), plain_len });
                    }
                    answers.push(later(reply, found));
                }
            }
        }
    }
    transaction.commit()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(n: u8) -> SessionId {
        SessionId::new(1_700_000_000_000, [n; 10])
    }

    #[tokio::test]
    async fn jobs_survive_a_restart_and_numbers_are_never_used_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("spool.redb");
        let (one, other) = (session(1), session(2));
        let spool = Spool::open(&path).unwrap();
        assert_eq!(spool.append(&one, vec![1], 10).await.unwrap(), JobNumber(1));
        assert_eq!(spool.append(&one, vec![2], 10).await.unwrap(), JobNumber(2));
        assert_eq!(spool.append(&other, vec![3], 10).await.unwrap(), JobNumber(1));
        spool.remove(&one, JobNumber(2)).await.unwrap();
        drop(spool);

        let spool = reopen(&path).await;
        let waiting = spool.outstanding(&one).await.unwrap();
        assert_eq!(waiting, [SpooledJob { number: JobNumber(1), body: vec![1], plain_len: 10 }]);
        assert_eq!(spool.append(&one, vec![4], 10).await.unwrap(), JobNumber(3));
        assert_eq!(spool.retain(std::slice::from_ref(&one)).await.unwrap(), 1);
        assert_eq!(spool.outstanding(&other).await.unwrap(), []);
        spool.forget(&one).await.unwrap();
        assert_eq!(spool.outstanding(&one).await.unwrap(), []);
    }

    /// The owner thread of the dropped handle closes the file when it notices.
    async fn reopen(path: &Path) -> Spool {
        loop {
            match Spool::open(path) {
                Ok(spool) => return spool,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    }

    #[tokio::test]
    async fn appends_that_wait_together_get_consecutive_numbers() {
        let directory = tempfile::tempdir().unwrap();
        let spool = Spool::open(&directory.path().join("spool.redb")).unwrap();
        let id = session(1);
        let mut waiting = tokio::task::JoinSet::new();
        for n in 0..100_u8 {
            let (spool, id) = (spool.clone(), id.clone());
            waiting.spawn(async move { spool.append(&id, vec![n], 1).await.unwrap().0 });
        }
        let mut numbers = waiting.join_all().await;
        numbers.sort_unstable();
        assert_eq!(numbers, (1..=100).collect::<Vec<u64>>());
    }
}
