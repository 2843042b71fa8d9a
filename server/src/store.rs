//! Where sessions are kept beside any worker's memory: their manifests, the chunks of their
//! evaluation keys, and the names of those that ended.
//!
//! Two stores behind one interface: [`DirectoryStore`] for one worker, [`RedisStore`] for many. A
//! session belongs to the robot that opened it: its name holds both, so one robot's frame never
//! reaches another's session.
//!
//! Invariants:
//! - chunks are stored one by one as they arrive; nobody holds a whole upload in memory;
//! - a session is gone when its time is over: it is not found from that moment on, and its bytes
//!   are removed by the next [`Store::sweep`] at the latest;
//! - of a session that ended before, a tombstone stays until its opens have expired, and nothing
//!   else: with it in place, no open brings the session back;
//! - opening is one step: of two opens with the same number one is refused, whichever workers took
//!   them, and no tenant gets beyond its budget;
//! - a store that is out of reach loses nothing of what it had said it holds, and says
//!   [`StoreError::Unavailable`];
//! - what comes out is not trusted: whoever loads keys checks them against their manifest.

mod directory;
mod record;
mod redis;

use std::pin::Pin;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use moai_transport::ids::{Identity, SessionId, Tenant};
use moai_transport::message::Manifest;

pub use self::directory::DirectoryStore;
pub use self::record::{Held, Record};
pub use self::redis::{RedisStore, RedisUrl};

/// Whose session it is, and which.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionKey {
    /// The robot.
    pub identity: Identity,
    /// Its session.
    pub session: SessionId,
}

/// A moment of the wall clock, in milliseconds since 1970. Workers of one store compare them, so
/// their clocks have to agree as well as clocks of servers do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixMillis(pub u64);

impl UnixMillis {
    /// Now.
    #[must_use]
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    /// How long it is from `earlier` until this moment; zero if that is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl std::ops::Add<Duration> for UnixMillis {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(millis))
    }
}

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It is out of reach. Try again later; what it holds it still holds.
    #[error("the key store is out of reach: {0}")]
    Unavailable(String),
    /// It has no room: free some, or raise its limit.
    #[error("the key store is full: {0}")]
    Full(String),
    /// It cannot be used as it is; a person has to look at it.
    #[error("the key store cannot be used: {0}")]
    Unusable(String),
}

/// What a tenant may keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Sessions that are open at a time.
    pub sessions: u64,
    /// Bytes of evaluation keys of these sessions. Keys count from their open on, whether they have
    /// arrived or not.
    pub bytes: u64,
}

/// What a tenant keeps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Sessions that are open.
    pub sessions: u64,
    /// Bytes of their evaluation keys, arrived or not.
    pub bytes: u64,
    /// Sessions that ended and whose names are kept.
    pub tombstones: u64,
}

/// For each session that may be open, so many may have ended lately.
const TOMBSTONES_PER_SESSION: u64 = 64;

impl Budget {
    fn tombstones(self) -> u64 {
        self.sessions.saturating_mul(TOMBSTONES_PER_SESSION)
    }
}

impl Usage {
    /// What would be exceeded if a session with a key of this length came to it.
    fn exceeds(self, budget: Budget, key_len: u64) -> Option<Exceeded> {
        let tombstones = budget.tombstones();
        if self.tombstones >= tombstones {
            Some(Exceeded::Tombstones(tombstones))
        } else if self.sessions >= budget.sessions {
            Some(Exceeded::Sessions(budget.sessions))
        } else if self.bytes.saturating_add(key_len) > budget.bytes {
            Some(Exceeded::Bytes(budget.bytes))
        } else {
            None
        }
    }
}

/// The limit that an open would exceed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exceeded {
    /// So many sessions may be open.
    Sessions(u64),
    /// So many bytes of keys may be kept.
    Bytes(u64),
    /// So many sessions may have ended lately.
    Tombstones(u64),
}

/// A session as the store has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// What is known of it.
    pub record: Record,
    /// Which chunks of its keys are there.
    pub held: Held,
}

/// What became of an open.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "one at a time is looked at, none is kept")]
pub enum Opened {
    /// The session is new, or new under these keys: nothing is there yet.
    New,
    /// It was there, and goes on: as it is now.
    Continued(Stored),
    /// It has ended, and does not come back.
    Ended,
    /// An open with this number, or with a higher one, was there before.
    Replayed {
        /// The newest number.
        newest: u64,
    },
    /// It would exceed the tenant's budget.
    Exceeded(Exceeded),
}

/// What is known of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "one at a time is looked at, none is kept")]
pub enum Found {
    /// Nothing.
    Nothing,
    /// It ended, and its opens have not all expired yet.
    Ended,
    /// It is open.
    Session(Stored),
}

/// What a store will have answered.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// A key store. All moments are the caller's: a store has no clock of its own to differ.
pub trait Store: Send + Sync {
    /// Takes a session in, or goes on with it.
    ///
    /// A session of this name with the same keys goes on: it takes over the nonce, the number and
    /// the evidence of the new record, and never lives longer than before. With other keys it begins
    /// anew. Whether `registered` is set in `record` is not looked at.
    ///
    /// # Errors
    /// See [`StoreError`]; nothing was changed.
    fn open<'a>(
        &'a self,
        key: &'a SessionKey,
        record: &'a Record,
        budget: Budget,
        now: UnixMillis,
    ) -> Answer<'a, Opened>;

    /// Looks for a session.
    ///
    /// # Errors
    /// See [`StoreError`].
    fn find<'a>(&'a self, key: &'a SessionKey, now: UnixMillis) -> Answer<'a, Found>;

    /// Stores a chunk that was checked against the manifest. False if the session is not there (any
    /// more).
    ///
    /// # Errors
    /// See [`StoreError`]; the chunk is not held then.
    fn put_chunk<'a>(
        &'a self,
        key: &'a SessionKey,
        index: usize,
        bytes: &'a [u8],
    ) -> Answer<'a, bool>;

    /// The keys of a session as far as they are there, in one piece; instead of a chunk that is
    /// missing there are other bytes, or none. None if the session is not there.
    ///
    /// # Errors
    /// See [`StoreError`].
    fn load<'a>(
        &'a self,
        key: &'a SessionKey,
        manifest: &'a Manifest,
    ) -> Answer<'a, Option<Vec<u8>>>;

    /// Notes that the keys were checked and are ready for use by any worker. False if the session is
    /// not there.
    ///
    /// # Errors
    /// See [`StoreError`].
    fn register<'a>(&'a self, key: &'a SessionKey) -> Answer<'a, bool>;

    /// Removes the chunks of a session that turned out not to be what its manifest says, so that
    /// its robot sends them again. The session stays.
    ///
    /// # Errors
    /// See [`StoreError`].
    fn discard_chunks<'a>(&'a self, key: &'a SessionKey) -> Answer<'a, ()>;

    /// Ends a session: removes all of it, and keeps its tombstone. False if it was not there.
    ///
    /// # Errors
    /// See [`StoreError`].
    fn end<'a>(&'a self, key: &'a SessionKey, now: UnixMillis) -> Answer<'a, bool>;

    /// Which of these sessions are there, in the same order.
    ///
    /// # Errors
    /// See [`StoreError`].
    fn alive<'a>(&'a self, keys: &'a [SessionKey], now: UnixMillis) -> Answer<'a, Vec<bool>>;

    /// What a tenant keeps.
    ///
    /// # Errors
    /// See [`StoreError`].
    fn usage<'a>(&'a self, tenant: &'a Tenant, now: UnixMillis) -> Answer<'a, Usage>;

    /// Removes what has had its time and returns the sessions that this ended: each once, to one of
    /// the workers that share the store.
    ///
    /// # Errors
    /// See [`StoreError`].
    fn sweep(&self, now: UnixMillis) -> Answer<'_, Vec<SessionKey>>;
}
