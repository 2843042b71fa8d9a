//! Sessions in a directory: the embedded store, for one worker.
//!
//! ```text
//! {path}/                                        0700
//!     lock                                       held while a server uses the directory
//!     sessions/                                  0700
//!         {tenant}.{robot}.{session}.record      0600  manifest and what else is known
//!         {tenant}.{robot}.{session}.keys        0600  chunks at their places, holes where none is
//!         {tenant}.{robot}.{session}.ended       0600  tombstone
//! ```
//!
//! Invariants:
//! - one process uses a directory: the others are turned away by the lock;
//! - a chunk counts as held after a restart only if its bytes have the digest that its manifest
//!   says, so nothing has to be synchronised with the disk and nothing torn is ever served;
//! - what lies in `sessions` and is torn, foreign or half a pair is removed when the store is
//!   opened, and never served;
//! - the table in memory is what counts; its lock is held for small files only, never for keys.

mod files;
mod table;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use moai_transport::ids::{Digest, Tenant};
use moai_transport::message::Manifest;

use self::files::{ENDED, KEYS, RECORD, create, private_directory, refusal, unusable, write};
use self::table::{Entry, State, Table, read_table};
use super::record::encode_tombstone;
use super::{
    Answer, Budget, Found, Held, Opened, Record, SessionKey, Store, StoreError, Stored, UnixMillis,
    Usage,
};

/// Sessions in a directory.
#[derive(Clone)]
pub struct DirectoryStore(Arc<Inner>);

struct Inner {
    sessions: PathBuf,
    table: Mutex<Table>,
    _lock: File,
}

impl DirectoryStore {
    /// Opens the store in `path`, which is made if it is not there.
    ///
    /// # Errors
    /// Another process uses it, it belongs to somebody else, others may look into it, or the
    /// operating system refuses.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        private_directory(path)?;
        let lock_file = path.join("lock");
        let lock = create(&lock_file, false).map_err(|error| unusable(&lock_file, &error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let message = format!(
                    "{} is used by another server; servers that share their sessions need the \
                     store \"redis\"",
                    path.display()
                );
                return Err(StoreError::Unusable(message));
            }
            Err(TryLockError::Error(error)) => return Err(unusable(&lock_file, &error)),
        }
        let sessions = path.join("sessions");
        private_directory(&sessions)?;
        let table = Mutex::new(read_table(&sessions)?);
        Ok(Self(Arc::new(Inner { sessions, table, _lock: lock })))
    }

    /// Runs `work`, which waits for the disk, off the async threads.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let inner = Arc::clone(&self.0);
        let done = tokio::task::spawn_blocking(move || work(&inner)).await;
        done.unwrap_or_else(|error| Err(StoreError::Unavailable(error.to_string())))
    }
}

impl Store for DirectoryStore {
    fn open<'a>(
        &'a self,
        key: &'a SessionKey,
        record: &'a Record,
        budget: Budget,
        now: UnixMillis,
    ) -> Answer<'a, Opened> {
        Box::pin(async move {
            let (key, record) = (key.clone(), record.clone());
            self.blocking(move |inner| inner.open(&key, record, budget, now)).await
        })
    }

    fn find<'a>(&'a self, key: &'a SessionKey, now: UnixMillis) -> Answer<'a, Found> {
        Box::pin(async move {
            let key = key.clone();
            self.blocking(move |inner| inner.find(&key, now)).await
        })
    }

    fn put_chunk<'a>(
        &'a self,
        key: &'a SessionKey,
        index: usize,
        bytes: &'a [u8],
    ) -> Answer<'a, bool> {
        Box::pin(async move {
            let (key, bytes) = (key.clone(), bytes.to_vec());
            self.blocking(move |inner| inner.put_chunk(&key, index, &bytes)).await
        })
    }

    fn load<'a>(
        &'a self,
        key: &'a SessionKey,
        manifest: &'a Manifest,
    ) -> Answer<'a, Option<Vec<u8>>> {
        Box::pin(async move {
            let (key, len) = (key.clone(), manifest.key_len);
            self.blocking(move |inner| inner.load(&key, len)).await
        })
    }

    fn register<'a>(&'a self, key: &'a SessionKey) -> Answer<'a, bool> {
        Box::pin(async move {
            let key = key.clone();
            self.blocking(move |inner| {
                let mut table = inner.table();
                let Some(entry) = table.open.get_mut(&key) else { return Ok(false) };
                let record = Record { registered: true, ..entry.record.clone() };
                inner.write_record(&key, &record)?;
                entry.record = record;
                Ok(true)
            })
            .await
        })
    }

    fn discard_chunks<'a>(&'a self, key: &'a SessionKey) -> Answer<'a, ()> {
        Box::pin(async move {
            let key = key.clone();
            self.blocking(move |inner| {
                let mut table = inner.table();
                let Some(entry) = table.open.get_mut(&key) else { return Ok(()) };
                inner.make_keys_file(&key, &entry.record.manifest)?;
                entry.held = Some(Held::none(entry.record.manifest.chunk_digests.len()));
                let record = Record { registered: false, ..entry.record.clone() };
                inner.write_record(&key, &record)?;
                entry.record = record;
                Ok(())
            })
            .await
        })
    }

    fn end<'a>(&'a self, key: &'a SessionKey, now: UnixMillis) -> Answer<'a, bool> {
        Box::pin(async move {
            let key = key.clone();
            self.blocking(move |inner| {
                let mut table = inner.table();
                if !table.open.contains_key(&key) {
                    return Ok(false);
                }
                inner.bury(&mut table, &key, now)?;
                Ok(true)
            })
            .await
        })
    }

    fn alive<'a>(&'a self, keys: &'a [SessionKey], now: UnixMillis) -> Answer<'a, Vec<bool>> {
        Box::pin(async move {
            let table = self.0.table();
            let is_alive = |key| {
                table.open.get(key).is_some_and(|entry: &Entry| entry.record.expires_at > now)
            };
            Ok(keys.iter().map(is_alive).collect())
        })
    }

    fn usage<'a>(&'a self, tenant: &'a Tenant, now: UnixMillis) -> Answer<'a, Usage> {
        Box::pin(async move { Ok(self.0.table().usage(tenant, None, now)) })
    }

    fn sweep(&self, now: UnixMillis) -> Answer<'_, Vec<SessionKey>> {
        Box::pin(async move {
            self.blocking(move |inner| {
                let mut table = inner.table();
                let over: Vec<SessionKey> = table
                    .open
                    .iter()
                    .filter(|(_, entry)| entry.record.expires_at <= now)
                    .map(|(key, _)| key.clone())
                    .collect();
                for key in &over {
                    inner.bury(&mut table, key, now)?;
                }
                let forgotten: Vec<SessionKey> = table
                    .ended
                    .iter()
                    .filter(|(_, until)| **until <= now)
                    .map(|(key, _)| key.clone())
                    .collect();
                for key in forgotten {
                    inner.remove(&key, ENDED)?;
                    table.ended.remove(&key);
                }
                Ok(over)
            })
            .await
        })
    }
}

impl Inner {
    fn table(&self) -> MutexGuard<'_, Table> {
        // The table is changed after the files were, in single steps: a panic leaves it whole.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(
        &self,
        key: &SessionKey,
        record: Record,
        budget: Budget,
        now: UnixMillis,
    ) -> Result<Opened, StoreError> {
        let mut table = self.table();
        if table.ended.get(key).is_some_and(|until| *until > now) {
            return Ok(Opened::Ended);
        }
        if let Some(entry) = table.open.get(key)
            && !matches!(entry.state(now), State::Forgotten)
        {
            if matches!(entry.state(now), State::Ended) {
                return Ok(Opened::Ended);
            }
            let newest = entry.record.open_number;
            if record.open_number <= newest {
                return Ok(Opened::Replayed { newest });
            }
            if let Some(record) = entry.record.continued(&record) {
                self.write_record(key, &record)?;
                let entry = Entry { record, held: entry.held.clone() };
                table.open.insert(key.clone(), entry);
                drop(table);
                let found = self.find(key, now)?;
                return Ok(match found {
                    Found::Session(stored) => Opened::Continued(stored),
                    Found::Nothing | Found::Ended => Opened::Ended,
                });
            }
        }
        let usage = table.usage(&key.identity.tenant, Some(key), now);
        if let Some(exceeded) = usage.exceeds(budget, record.manifest.key_len) {
            return Ok(Opened::Exceeded(exceeded));
        }
        let record = Record { registered: false, ..record };
        self.make_keys_file(key, &record.manifest)?;
        self.write_record(key, &record)?;
        let held = Some(Held::none(record.manifest.chunk_digests.len()));
        table.open.insert(key.clone(), Entry { record, held });
        Ok(Opened::New)
    }

    fn find(&self, key: &SessionKey, now: UnixMillis) -> Result<Found, StoreError> {
        let record = {
            let table = self.table();
            let Some(entry) = table.open.get(key) else {
                let ended = table.ended.get(key).is_some_and(|until| *until > now);
                return Ok(if ended { Found::Ended } else { Found::Nothing });
            };
            match entry.state(now) {
                State::Open => {}
                State::Ended => return Ok(Found::Ended),
                State::Forgotten => return Ok(Found::Nothing),
            }
            if let Some(held) = entry.held.clone() {
                return Ok(Found::Session(Stored { record: entry.record.clone(), held }));
            }
            entry.record.clone()
        };
        let held = self.verified(key, &record.manifest)?;
        let mut table = self.table();
        let Some(entry) = table.open.get_mut(key) else { return Ok(Found::Nothing) };
        let held = entry.held.get_or_insert(held).clone();
        Ok(Found::Session(Stored { record: entry.record.clone(), held }))
    }

    fn put_chunk(&self, key: &SessionKey, index: usize, bytes: &[u8]) -> Result<bool, StoreError> {
        let mut table = self.table();
        let Some(entry) = table.open.get_mut(key) else { return Ok(false) };
        let path = self.path(key, KEYS);
        let offset = (index as u64).saturating_mul(entry.record.manifest.chunk_len.into());
        OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|file| file.write_all_at(bytes, offset))
            .map_err(|error| refusal(&path, &error))?;
        if let Some(held) = &mut entry.held {
            held.insert(index);
        }
        Ok(true)
    }

    fn load(&self, key: &SessionKey, len: u64) -> Result<Option<Vec<u8>>, StoreError> {
        if !self.table().open.contains_key(key) {
            return Ok(None);
        }
        let path = self.path(key, KEYS);
        let mut bytes = Vec::new();
        match File::open(&path).and_then(|file| file.take(len).read_to_end(&mut bytes)) {
            Ok(_) => Ok(Some(bytes)),
            // It ended while we were on our way.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(refusal(&path, &error)),
        }
    }

    /// The chunks on the disk that are what the manifest says.
    fn verified(&self, key: &SessionKey, manifest: &Manifest) -> Result<Held, StoreError> {
        let path = self.path(key, KEYS);
        let count = manifest.chunk_digests.len();
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Held::none(count)),
            Err(error) => return Err(refusal(&path, &error)),
        };
        let mut held = Held::none(count);
        let mut left = manifest.key_len;
        for (index, digest) in manifest.chunk_digests.iter().enumerate() {
            let len = left.min(manifest.chunk_len.into());
            left -= len;
            let mut chunk = Vec::new();
            let read = (&mut file).take(len).read_to_end(&mut chunk);
            read.map_err(|error| refusal(&path, &error))?;
            if Digest::of(&chunk) == *digest {
                held.insert(index);
            }
        }
        Ok(held)
    }

    /// Ends a session: first its name is kept, then its record goes, then its keys.
    fn bury(&self, table: &mut Table, key: &SessionKey, now: UnixMillis) -> Result<(), StoreError> {
        let Some(entry) = table.open.get(key) else { return Ok(()) };
        let until = entry.record.opens_until.max(entry.record.expires_at);
        if until > now {
            write(&self.path(key, ENDED), &encode_tombstone(key, until))?;
            table.ended.insert(key.clone(), until);
        }
        self.remove(key, RECORD)?;
        self.remove(key, KEYS)?;
        table.open.remove(key);
        Ok(())
    }

    fn path(&self, key: &SessionKey, extension: &str) -> PathBuf {
        self.sessions.join(format!("{key}.{extension}"))
    }

    fn write_record(&self, key: &SessionKey, record: &Record) -> Result<(), StoreError> {
        let bytes = record.encode(key).map_err(StoreError::Unusable)?;
        write(&self.path(key, RECORD), &bytes)
    }

    /// A file of the keys' length without any of their bytes.
    fn make_keys_file(&self, key: &SessionKey, manifest: &Manifest) -> Result<(), StoreError> {
        let path = self.path(key, KEYS);
        create(&path, true)
            .and_then(|file| file.set_len(manifest.key_len))
            .map_err(|error| refusal(&path, &error))
    }

    fn remove(&self, key: &SessionKey, extension: &str) -> Result<(), StoreError> {
        let path = self.path(key, extension);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(refusal(&path, &error)),
            _ => Ok(()),
        }
    }
}
