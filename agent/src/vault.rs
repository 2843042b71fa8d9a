//! The vault: sealed records of live sessions, so that a restart needs nothing else.
//!
//! Invariants:
//! - a record is sealed under a key derived from the root secret of one epoch; all records are of
//!   the epoch that the vault's marker names, which is in the clear;
//! - the next epoch begins in one transaction: marker and all records, or nothing;
//! - a root secret of another epoch than the marker's opens nothing and erases nothing;
//! - a record is on disk before the session it describes acts;
//! - a session that ended leaves its jobs' epitaph, without a seed, until each of them has its error;
//! - a seed made ahead becomes one session's and ceases to be ahead in one transaction;
//! - a record that cannot be opened in its own epoch is reported and erased, never guessed at.

mod cipher;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use moai_fhe::ModelCard;
use moai_tpm::{Advice, Epoch};
use moai_transport::ids::{ContextId, Digest, SessionId, TaskId};
use moai_transport::message::Manifest;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use self::cipher::EpochCipher;
use crate::clock::{BootId, BootInstant};
use crate::secrets::{SessionSeed, VaultKey};
use crate::session::lifecycle::{EndReason, Lifecycle};
use crate::spool::Era;
use crate::store::{self, StoreError};
use crate::ttl::TtlClass;

const SESSIONS: Sealed = TableDefinition::new("sessions");
const MARKER: TableDefinition<'_, (), u32> = TableDefinition::new("epoch");
const AUDIT: TableDefinition<'_, (), &[u8]> = TableDefinition::new("audit");
/// What the audit log's seal is sealed for.
const AUDIT_PURPOSE: &[u8] = b"moai/v1/audit";
const ENDED: Sealed = TableDefinition::new("ended");
const WARM: Sealed = TableDefinition::new("warm");
/// What records of ended sessions are sealed for.
const ENDED_PURPOSE: &[u8] = b"moai/v1/ended";
/// What seeds made ahead are sealed for.
const WARM_PURPOSE: &[u8] = b"moai/v1/warm";
const SEED_LEN: usize = 32;

/// A session as the vault keeps it. A clone shares the seed, it does not copy it.
#[derive(Clone)]
pub struct SessionRecord {
    /// The session.
    pub id: SessionId,
    /// What all its keys come from.
    pub seed: Arc<SessionSeed>,
    /// What may be known of it.
    pub facts: SessionFacts,
}

/// The part of a record that is not secret in itself.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionFacts {
    /// The task it serves.
    pub task: TaskId,
    /// The model it was opened for, as the catalogue had it then.
    pub card: ModelCard,
    /// Its lifetime class.
    pub ttl: TtlClass,
    /// Where it is in its life.
    pub state: Lifecycle,
    /// What of its results may leave the agent.
    pub release: Release,
    /// Whether its keys were made before the task was opened.
    pub warm: bool,
    /// When it ends.
    pub expires: BootInstant,
    /// The same as Unix time, if the wall clock was known good when the session began: what counts
    /// after a reboot.
    pub expires_unix: Option<Duration>,
    /// The boot `expires` belongs to.
    pub boot: BootId,
    /// What its evaluation keys look like; absent until they were generated once.
    pub manifest: Option<Manifest>,
    /// How often the session was begun or resumed: each time its opens are numbered from above all
    /// numbers that were ever used.
    pub run: u32,
    /// The spool's era when it began; in another one it takes no more jobs.
    pub era: Era,
}

/// What of a decrypted result onboard software gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Release {
    /// The label.
    #[default]
    Label,
    /// The label, and the scores it follows from: integers, as the model declares them.
    Scores,
}

/// A session that is over and has jobs whose error is not told yet, or may have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndedFacts {
    /// The task it served.
    pub task: TaskId,
    /// Why it ended.
    pub reason: EndReason,
}

/// A seed whose evaluation keys were made before any session needs them. A clone shares the seed.
#[derive(Clone)]
pub struct WarmRecord {
    /// The name of its keys' file; no session's id.
    pub id: SessionId,
    /// What all its keys come from.
    pub seed: Arc<SessionSeed>,
    /// What may be known of it.
    pub facts: WarmFacts,
}

/// The part of a warm record that is not secret in itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WarmFacts {
    /// What the keys were made for.
    pub context: ContextId,
    /// Length of the keys' file in bytes.
    pub key_len: u64,
    /// Digest of the keys' file.
    pub key_digest: Digest,
}

/// Why the vault failed.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// The file failed.
    #[error("the session vault: {0}")]
    Store(#[from] StoreError),
    /// No randomness for a nonce.
    #[error("the operating system gave no randomness: {0}")]
    Randomness(#[from] getrandom::Error),
    /// A record could not be encoded.
    #[error("a session record cannot be written: {0}")]
    Encode(String),
    /// A record does not open.
    #[error(
        "the record of session {session} does not open: it was changed, or another root secret \
         wrote it; it is erased and the session ends"
    )]
    Unreadable {
        /// The session whose record it was, or what stood in its place.
        session: String,
    },
    /// Root secret and vault do not go together.
    #[error(
        "the session vault is of epoch {vault}, the root secret of epoch {root}: an old copy of one \
         of them was put back. Put the newer file back, or move the vault away to start without \
         sessions; nothing was erased"
    )]
    OtherEpoch {
        /// The vault's.
        vault: Epoch,
        /// The root secret's.
        root: Epoch,
    },
}

impl VaultError {
    /// Retry, fix or stop?
    #[must_use]
    pub fn advice(&self) -> Advice {
        match self {
            Self::Store(_) | Self::OtherEpoch { .. } => Advice::Fix,
            Self::Randomness(_) | Self::Encode(_) | Self::Unreadable { .. } => Advice::Stop,
        }
    }
}

/// The vault's file before the root secret is at hand.
pub struct LockedVault {
    database: Database,
}

impl LockedVault {
    /// Opens or creates the file.
    ///
    /// # Errors
    /// The file cannot be opened or is not a vault.
    pub fn open(path: &Path) -> Result<Self, VaultError> {
        Ok(Self { database: store::open(path)? })
    }

    /// Opens or creates the file. One that is damaged is moved aside, since a robot that starts
    /// without its sessions is better than one that does not start; returns its new name, which ends
    /// in `now`, in seconds since 1970.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open_or_begin(path: &Path, now: u64) -> Result<(Self, Option<String>), VaultError> {
        let damage = match Self::open(path) {
            Err(VaultError::Store(error @ StoreError::Damaged { .. })) => error,
            opened => return opened.map(|vault| (vault, None)),
        };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let aside = format!("{name}.damaged-{now}");
        std::fs::rename(path, path.with_file_name(&aside))
            .map_err(|source| StoreError::Open { path: path.to_owned(), source })?;
        tracing::error!(%damage, %aside, "the vault was damaged; all sessions begin anew");
        Ok((Self::open(path)?, Some(aside)))
    }

    /// A vault that is gone with its last handle.
    #[cfg(test)]
    pub(crate) fn in_memory() -> Self {
        Self { database: store::in_memory() }
    }

    /// The epoch of all records; `None` if the vault was never unlocked.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn epoch(&self) -> Result<Option<Epoch>, VaultError> {
        read_marker(&self.database)
    }

    /// Whether a key could be that of the records of `epoch`: one of them opens, or there is none.
    ///
    /// # Errors
    /// The records are of another epoch, or the disk refuses.
    pub fn fits(&self, key: &VaultKey, epoch: Epoch) -> Result<bool, VaultError> {
        if let Some(vault) = self.epoch()?.filter(|vault| *vault != epoch) {
            return Err(VaultError::OtherEpoch { vault, root: epoch });
        }
        let cipher = EpochCipher::new(key, epoch);
        let read = self.database.begin_read().map_err(StoreError::from)?;
        let Ok(table) = read.open_table(SESSIONS) else { return Ok(true) };
        let mut is_empty = true;
        for row in table.iter().map_err(StoreError::from)? {
            let (id, value) = row.map_err(StoreError::from)?;
            if cipher.open(id.value(), value.value()).is_some() {
                return Ok(true);
            }
            is_empty = false;
        }
        Ok(is_empty)
    }

    /// Opens the records of `epoch`, with the key derived from its root secret.
    ///
    /// # Errors
    /// The records are of another epoch, or the disk refuses.
    pub fn unlock(self, key: &VaultKey, epoch: Epoch) -> Result<Vault, VaultError> {
        match self.epoch()? {
            Some(vault) if vault != epoch => {
                return Err(VaultError::OtherEpoch { vault, root: epoch });
            }
            Some(_) => {}
            None => store::write(&self.database, MARKER, |marker| {
                marker.insert((), epoch.0)?;
                Ok(())
            })?,
        }
        let cipher = Mutex::new(EpochCipher::new(key, epoch));
        Ok(Vault { database: self.database, cipher })
    }
}

/// The database of sealed session records.
pub struct Vault {
    database: Database,
    /// Held for a whole transaction, so that none falls between two epochs.
    cipher: Mutex<EpochCipher>,
}

impl Vault {
    /// The epoch of all records on disk.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn marker(&self) -> Result<Option<Epoch>, VaultError> {
        read_marker(&self.database)
    }

    /// Makes sure that records are written in `epoch`.
    ///
    /// # Errors
    /// They are written in another.
    pub fn expect(&self, epoch: Epoch) -> Result<(), VaultError> {
        let vault = self.cipher().epoch;
        if vault == epoch { Ok(()) } else { Err(VaultError::OtherEpoch { vault, root: epoch }) }
    }

    /// Writes a record, replacing the session's earlier one; durable when it returns.
    ///
    /// # Errors
    /// The disk refuses or there is no randomness.
    pub fn write(&self, record: &SessionRecord) -> Result<(), VaultError> {
        let cipher = self.cipher();
        let sealed = cipher.seal(record)?;
        self.replace(&cipher, None, Some((SESSIONS, &record.id, &sealed)))
    }

    /// Erases a session's record and its seed, and keeps in their place why it ended; durable when
    /// it returns.
    ///
    /// # Errors
    /// The disk refuses or there is no randomness.
    pub fn end(&self, id: &SessionId, facts: &EndedFacts) -> Result<(), VaultError> {
        let cipher = self.cipher();
        let sealed = cipher.seal_bytes(&purpose(ENDED_PURPOSE, id), &encoded(facts)?)?;
        self.replace(&cipher, Some((SESSIONS, id)), Some((ENDED, id, &sealed)))
    }

    /// Forgets an ended session.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn forget(&self, id: &SessionId) -> Result<(), VaultError> {
        self.replace(&self.cipher(), Some((ENDED, id)), None)
    }

    /// Every ended session that is not forgotten; records that do not open are erased.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn load_ended(&self) -> Result<Vec<(SessionId, EndedFacts)>, VaultError> {
        self.load_sealed(ENDED, ENDED_PURPOSE, |id, plain| {
            Some((id, ciborium::from_reader(plain).ok()?))
        })
    }

    /// Keeps a seed made ahead; durable when it returns.
    ///
    /// # Errors
    /// The disk refuses or there is no randomness.
    pub fn write_warm(&self, record: &WarmRecord) -> Result<(), VaultError> {
        let cipher = self.cipher();
        let facts = encoded(&record.facts)?;
        let mut plain = Zeroizing::new(Vec::with_capacity(SEED_LEN + facts.len()));
        plain.extend_from_slice(record.seed.expose());
        plain.extend_from_slice(&facts);
        let sealed = cipher.seal_bytes(&purpose(WARM_PURPOSE, &record.id), &plain)?;
        self.replace(&cipher, None, Some((WARM, &record.id, &sealed)))
    }

    /// Every seed made ahead; records that do not open are erased.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn load_warm(&self) -> Result<Vec<WarmRecord>, VaultError> {
        self.load_sealed(WARM, WARM_PURPOSE, |id, plain| {
            let (seed, facts) = plain.split_first_chunk::<SEED_LEN>()?;
            let seed = Arc::new(SessionSeed::from_bytes(*seed));
            Some(WarmRecord { id, seed, facts: ciborium::from_reader(facts).ok()? })
        })
    }

    /// Makes a seed made ahead that of a session: its warm record goes as the session's comes, in
    /// one durable transaction.
    ///
    /// # Errors
    /// The disk refuses or there is no randomness.
    pub fn adopt(&self, warm: &SessionId, record: &SessionRecord) -> Result<(), VaultError> {
        let cipher = self.cipher();
        let sealed = cipher.seal(record)?;
        self.replace(&cipher, Some((WARM, warm)), Some((SESSIONS, &record.id, &sealed)))
    }

    /// Erases a seed made ahead.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn erase_warm(&self, id: &SessionId) -> Result<(), VaultError> {
        self.replace(&self.cipher(), Some((WARM, id)), None)
    }

    /// Removes one record and inserts another, in one durable transaction.
    fn replace(
        &self,
        cipher: &EpochCipher,
        remove: Option<(Sealed, &SessionId)>,
        insert: Option<(Sealed, &SessionId, &[u8])>,
    ) -> Result<(), VaultError> {
        let transaction = self.database.begin_write().map_err(StoreError::from)?;
        check_marker(&transaction, cipher.epoch)?;
        if let Some((table, id)) = remove {
            let mut table = transaction.open_table(table).map_err(StoreError::from)?;
            table.remove(id.as_bytes().as_slice()).map_err(StoreError::from)?;
        }
        if let Some((table, id, sealed)) = insert {
            let mut table = transaction.open_table(table).map_err(StoreError::from)?;
            table.insert(id.as_bytes().as_slice(), sealed).map_err(StoreError::from)?;
        }
        transaction.commit().map_err(StoreError::from)?;
        Ok(())
    }

    fn load_sealed<T>(
        &self,
        table: Sealed,
        sealed_for: &[u8],
        read: impl Fn(SessionId, &[u8]) -> Option<T>,
    ) -> Result<Vec<T>, VaultError> {
        let cipher = self.cipher();
        let mut records = Vec::new();
        let mut unreadable: Vec<Vec<u8>> = Vec::new();
        {
            let snapshot = self.database.begin_read().map_err(StoreError::from)?;
            let Ok(rows) = snapshot.open_table(table) else { return Ok(records) };
            for row in rows.iter().map_err(StoreError::from)? {
                let (key, value) = row.map_err(StoreError::from)?;
                let record = session_id(key.value()).and_then(|id| {
                    let plain = cipher.open_bytes(&purpose(sealed_for, &id), value.value())?;
                    read(id, &plain)
                });
                match record {
                    Some(record) => records.push(record),
                    None => unreadable.push(key.value().to_vec()),
                }
            }
        }
        if !unreadable.is_empty() {
            tracing::error!(count = unreadable.len(), "records that do not open are erased");
            store::write(&self.database, table, |table| {
                for key in &unreadable {
                    table.remove(key.as_slice())?;
                }
                Ok(())
            })?;
        }
        Ok(records)
    }

    /// Every record; those that do not open are erased and returned as errors.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn load(&self) -> Result<Vec<Result<SessionRecord, VaultError>>, VaultError> {
        let cipher = self.cipher();
        let mut records = Vec::new();
        let mut unreadable: Vec<Vec<u8>> = Vec::new();
        {
            let read = self.database.begin_read().map_err(StoreError::from)?;
            let Ok(table) = read.open_table(SESSIONS) else { return Ok(records) };
            for row in table.iter().map_err(StoreError::from)? {
                let (key, value) = row.map_err(StoreError::from)?;
                let record = cipher.open(key.value(), value.value());
                if record.is_none() {
                    unreadable.push(key.value().to_vec());
                }
                records.push(
                    record.ok_or_else(|| VaultError::Unreadable {
                        session: hex::encode(key.value()),
                    }),
                );
            }
        }
        if !unreadable.is_empty() {
            store::write(&self.database, SESSIONS, |table| {
                for key in &unreadable {
                    table.remove(key.as_slice())?;
                }
                Ok(())
            })?;
        }
        Ok(records)
    }

    /// What the audit log keeps here; `None` if it keeps nothing that opens.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn read_audit(&self) -> Result<Option<Zeroizing<Vec<u8>>>, VaultError> {
        let cipher = self.cipher();
        let read = self.database.begin_read().map_err(StoreError::from)?;
        let table = match read.open_table(AUDIT) {
            Ok(table) => table,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
            Err(error) => return Err(StoreError::from(error).into()),
        };
        let sealed = table.get(()).map_err(StoreError::from)?;
        Ok(sealed.and_then(|sealed| cipher.open_bytes(AUDIT_PURPOSE, sealed.value())))
    }

    /// Keeps something for the audit log, in place of what it kept before; durable when it returns.
    ///
    /// # Errors
    /// The disk refuses or there is no randomness.
    pub fn write_audit(&self, plain: &[u8]) -> Result<(), VaultError> {
        let cipher = self.cipher();
        let sealed = cipher.seal_bytes(AUDIT_PURPOSE, plain)?;
        let transaction = self.database.begin_write().map_err(StoreError::from)?;
        check_marker(&transaction, cipher.epoch)?;
        {
            let mut table = transaction.open_table(AUDIT).map_err(StoreError::from)?;
            table.insert((), sealed.as_slice()).map_err(StoreError::from)?;
        }
        transaction.commit().map_err(StoreError::from)?;
        Ok(())
    }

    /// Begins the next epoch: seals every record under `key` and sets the marker, in one durable
    /// transaction. Returns the number of records. One that does not open stays as it is, to be
    /// reported by [`Self::load`].
    ///
    /// # Errors
    /// The disk refuses; the vault is in the one epoch or the other then, and only a new start
    /// tells which if the disk failed while it was told to commit.
    pub fn rewrap(&self, key: &VaultKey, epoch: Epoch) -> Result<usize, VaultError> {
        let mut cipher = self.cipher();
        let next = EpochCipher::new(key, epoch);
        let transaction = self.database.begin_write().map_err(StoreError::from)?;
        check_marker(&transaction, cipher.epoch)?;
        let count = {
            let mut sessions = transaction.open_table(SESSIONS).map_err(StoreError::from)?;
            let mut rewrapped = Vec::new();
            for row in sessions.iter().map_err(StoreError::from)? {
                let (id, value) = row.map_err(StoreError::from)?;
                if let Some(record) = cipher.open(id.value(), value.value()) {
                    rewrapped.push((id.value().to_vec(), next.seal(&record)?));
                }
            }
            for (id, sealed) in &rewrapped {
                sessions.insert(id.as_slice(), sealed.as_slice()).map_err(StoreError::from)?;
            }
            let mut audit = transaction.open_table(AUDIT).map_err(StoreError::from)?;
            let kept = audit.get(()).map_err(StoreError::from)?;
            let plain = kept.and_then(|kept| cipher.open_bytes(AUDIT_PURPOSE, kept.value()));
            if let Some(plain) = plain {
                let sealed = next.seal_bytes(AUDIT_PURPOSE, &plain)?;
                audit.insert((), sealed.as_slice()).map_err(StoreError::from)?;
            }
            for (table, sealed_for) in [(ENDED, ENDED_PURPOSE), (WARM, WARM_PURPOSE)] {
                rewrap_sealed(&transaction, table, sealed_for, &cipher, &next)?;
            }
            let mut marker = transaction.open_table(MARKER).map_err(StoreError::from)?;
            marker.insert((), epoch.0).map_err(StoreError::from)?;
            rewrapped.len()
        };
        transaction.commit().map_err(StoreError::from)?;
        *cipher = next;
        Ok(count)
    }

    fn cipher(&self) -> MutexGuard<'_, EpochCipher> {
        self.cipher.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Sealed = TableDefinition<'static, &'static [u8], &'static [u8]>;

/// What a record is sealed for: its kind and its place.
fn purpose(kind: &[u8], id: &SessionId) -> Vec<u8> {
    [kind, id.as_bytes()].concat()
}

fn session_id(key: &[u8]) -> Option<SessionId> {
    SessionId::from_bytes(key.try_into().ok()?)
}

fn encoded(facts: &impl Serialize) -> Result<Vec<u8>, VaultError> {
    let mut bytes = Vec::new();
    ciborium::into_writer(facts, &mut bytes)
        .map_err(|error| VaultError::Encode(error.to_string()))?;
    Ok(bytes)
}

fn rewrap_sealed(
    transaction: &WriteTransaction,
    table: Sealed,
    sealed_for: &[u8],
    old: &EpochCipher,
    new: &EpochCipher,
) -> Result<(), VaultError> {
    let mut records = transaction.open_table(table).map_err(StoreError::from)?;
    let mut rewrapped = Vec::new();
    for row in records.iter().map_err(StoreError::from)? {
        let (key, value) = row.map_err(StoreError::from)?;
        let Some(id) = session_id(key.value()) else { continue };
        let purpose = purpose(sealed_for, &id);
        if let Some(plain) = old.open_bytes(&purpose, value.value()) {
            rewrapped.push((id, new.seal_bytes(&purpose, &plain)?));
        }
    }
    for (id, sealed) in &rewrapped {
        records.insert(id.as_bytes().as_slice(), sealed.as_slice()).map_err(StoreError::from)?;
    }
    Ok(())
}

fn read_marker(database: &Database) -> Result<Option<Epoch>, VaultError> {
    let read = database.begin_read().map_err(StoreError::from)?;
    match read.open_table(MARKER) {
        Ok(table) => {
            let marker = table.get(()).map_err(StoreError::from)?;
            Ok(marker.map(|marker| Epoch(marker.value())))
        }
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(StoreError::from(error).into()),
    }
}

/// Nothing is written in an epoch that is not the vault's.
fn check_marker(transaction: &WriteTransaction, epoch: Epoch) -> Result<(), VaultError> {
    let marker = transaction.open_table(MARKER).map_err(StoreError::from)?;
    let vault = marker.get(()).map_err(StoreError::from)?.map(|marker| Epoch(marker.value()));
    match vault {
        Some(vault) if vault != epoch => Err(VaultError::OtherEpoch { vault, root: epoch }),
        _ => Ok(()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use moai_fhe::Model;
    use moai_tpm::RootSecret;

    use super::*;

    fn card() -> ModelCard {
        let json = r#"{"format":1,"id":"m","kind":"lookup","levels":2,
            "window":{"samples":1,"channels":["x"]},"labels":["a","b"],
            "features":[{"channel":0,"statistic":"mean","transform":"none","edges":[0.5]}],
            "tables":[[[0,1]]],"bias":[0],"provenance":{}}"#;
        Model::from_json(json.as_bytes()).unwrap().card().clone()
    }

    pub(crate) fn record(n: u8) -> SessionRecord {
        let facts = SessionFacts {
            task: "arm".parse().unwrap(),
            card: card(),
            ttl: TtlClass::Sensitive,
            state: Lifecycle::begin(),
            release: Release::Label,
            warm: false,
            expires: BootInstant(5000),
            expires_unix: None,
            boot: BootId::of("boot"),
            manifest: None,
            run: 1,
            era: Era::of(1),
        };
        let seed = Arc::new(SessionSeed::from_bytes([n; 32]));
        SessionRecord { id: SessionId::new(1_700_000_000_000, [n; 10]), seed, facts }
    }

    fn key(root: u8) -> VaultKey {
        VaultKey::derive(&RootSecret::from_bytes([root; 32]))
    }

    fn open(path: &Path, root: u8, epoch: u32) -> Result<Vault, VaultError> {
        LockedVault::open(path).unwrap().unlock(&key(root), Epoch(epoch))
    }

    pub(crate) fn seeds(vault: &Vault) -> Vec<u8> {
        vault.load().unwrap().into_iter().map(|record| record.unwrap().seed.expose()[0]).collect()
    }

    fn file() -> (tempfile::TempDir, std::path::PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vault.redb");
        (directory, path)
    }

    #[test]
    fn a_record_survives_a_restart_and_goes_when_it_is_erased() {
        let (_directory, path) = file();
        open(&path, 1, 1).unwrap().write(&record(7)).unwrap();
        let vault = open(&path, 1, 1).unwrap();
        let kept = vault.load().unwrap().remove(0).unwrap();
        assert_eq!(kept.id, record(7).id);
        assert_eq!(kept.seed.expose(), &[7; 32]);
        assert_eq!(kept.facts.expires, BootInstant(5000));
        let facts = EndedFacts { task: "arm".parse().unwrap(), reason: EndReason::Revoked };
        vault.end(&kept.id, &facts).unwrap();
        assert!(vault.load().unwrap().is_empty());
        assert_eq!(vault.load_ended().unwrap(), [(kept.id.clone(), facts)]);
        vault.forget(&kept.id).unwrap();
        assert!(vault.load_ended().unwrap().is_empty());
    }

    fn warm(n: u8) -> WarmRecord {
        let id = SessionId::new(1_700_000_000_000, [n; 10]);
        let facts = WarmFacts {
            context: ContextId(Digest([1; 32])),
            key_len: 4,
            key_digest: Digest::of(b"keys"),
        };
        WarmRecord { id, seed: Arc::new(SessionSeed::from_bytes([n; 32])), facts }
    }

    #[test]
    fn a_seed_made_ahead_becomes_one_sessions_and_ceases_to_be_ahead() {
        let (_directory, path) = file();
        let vault = open(&path, 1, 1).unwrap();
        vault.write_warm(&warm(7)).unwrap();
        let kept = vault.load_warm().unwrap().remove(0);
        assert_eq!(kept.seed.expose(), &[7; 32]);
        assert_eq!(kept.facts, warm(7).facts);
        vault.adopt(&kept.id, &record(7)).unwrap();
        assert!(vault.load_warm().unwrap().is_empty());
        assert_eq!(seeds(&vault), [7]);
        vault.write_warm(&warm(8)).unwrap();
        vault.erase_warm(&warm(8).id).unwrap();
        assert!(vault.load_warm().unwrap().is_empty());
    }

    #[test]
    fn a_warm_record_that_was_moved_opens_nowhere() {
        let (_directory, path) = file();
        let vault = open(&path, 1, 1).unwrap();
        vault.write_warm(&warm(7)).unwrap();
        store::write(&vault.database, WARM, |table| {
            let (from, to) = (warm(7).id, warm(8).id);
            let sealed = table.remove(from.as_bytes().as_slice())?.map(|it| it.value().to_vec());
            table.insert(to.as_bytes().as_slice(), sealed.unwrap_or_default().as_slice())?;
            Ok(())
        })
        .unwrap();
        assert!(vault.load_warm().unwrap().is_empty());
    }

    #[test]
    fn under_another_root_secret_no_record_opens_and_all_are_erased() {
        let (_directory, path) = file();
        open(&path, 1, 1).unwrap().write(&record(7)).unwrap();
        let vault = open(&path, 2, 1).unwrap();
        assert!(matches!(vault.load().unwrap()[..], [Err(VaultError::Unreadable { .. })]));
        assert!(vault.load().unwrap().is_empty());
    }

    #[test]
    fn a_root_secret_of_another_epoch_opens_nothing_and_erases_nothing() {
        let (_directory, path) = file();
        open(&path, 1, 2).unwrap().write(&record(7)).unwrap();
        for other in [1, 3] {
            let fits = LockedVault::open(&path).unwrap().fits(&key(1), Epoch(other));
            assert!(matches!(fits, Err(VaultError::OtherEpoch { .. })));
            let refused = open(&path, 1, other).err();
            assert!(matches!(refused, Some(VaultError::OtherEpoch { vault: Epoch(2), .. })));
        }
        assert!(LockedVault::open(&path).unwrap().fits(&key(1), Epoch(2)).unwrap());
        assert!(!LockedVault::open(&path).unwrap().fits(&key(2), Epoch(2)).unwrap());
        assert_eq!(seeds(&open(&path, 1, 2).unwrap()), [7]);
    }

    #[test]
    fn the_next_epoch_has_every_record_and_the_one_before_none() {
        let (_directory, path) = file();
        let vault = open(&path, 1, 1).unwrap();
        vault.write(&record(1)).unwrap();
        vault.write(&record(2)).unwrap();
        vault.write_audit(b"seal").unwrap();
        vault.write_warm(&warm(9)).unwrap();
        let facts = EndedFacts { task: "arm".parse().unwrap(), reason: EndReason::Expired };
        vault.end(&record(4).id, &facts).unwrap();
        assert_eq!(vault.rewrap(&key(2), Epoch(2)).unwrap(), 2);
        assert_eq!(vault.read_audit().unwrap().unwrap().as_slice(), b"seal");
        assert_eq!(vault.load_warm().unwrap().len(), 1);
        assert_eq!(vault.load_ended().unwrap().len(), 1);
        vault.expect(Epoch(2)).unwrap();
        vault.write(&record(3)).unwrap();
        assert_eq!(seeds(&vault), [1, 2, 3]);
        drop(vault);
        assert_eq!(LockedVault::open(&path).unwrap().epoch().unwrap(), Some(Epoch(2)));
        assert!(open(&path, 1, 1).is_err());
        assert_eq!(seeds(&open(&path, 2, 2).unwrap()), [1, 2, 3]);
    }

    #[test]
    fn the_seed_is_not_on_disk() {
        let (_directory, path) = file();
        let vault = open(&path, 1, 1).unwrap();
        let mut secret = record(3);
        secret.seed = Arc::new(SessionSeed::from_bytes(
            *b"a seed that must never be on disk".first_chunk().unwrap(),
        ));
        vault.write(&secret).unwrap();
        drop(vault);
        let bytes = std::fs::read(&path).unwrap();
        assert!(!bytes.windows(16).any(|window| window == &secret.seed.expose()[..16]));
    }

    #[test]
    fn a_damaged_vault_is_moved_aside_and_nothing_wrong_is_read_from_any() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vault.redb");
        let vault = open(&path, 1, 1).unwrap();
        for n in 1..=20 {
            vault.write(&record(n)).unwrap();
        }
        drop(vault);
        let whole = std::fs::read(&path).unwrap();
        let blocks = whole.len() / 512;
        let truncations = (0..blocks).step_by(40).map(|block| whole[..block * 512].to_vec());
        let garbage = (0..blocks).map(|block| {
            let mut bytes = whole.clone();
            bytes[block * 512..][..512].fill(0xa5);
            bytes
        });
        let (mut moved, mut kept) = (0, 0);
        for bytes in garbage.chain(truncations) {
            std::fs::write(&path, &bytes).unwrap();
            let (vault, aside) = LockedVault::open_or_begin(&path, 7).unwrap();
            let vault = vault.unlock(&key(1), Epoch(1)).unwrap();
            let mut seeds = seeds(&vault);
            seeds.sort_unstable();
            if let Some(aside) = aside {
                assert_eq!(aside, "vault.redb.damaged-7");
                // All but a flag of the store's that the file was opened.
                let kept = std::fs::read(path.with_file_name(aside)).unwrap();
                assert_eq!(kept.len(), bytes.len());
                let differing = kept.iter().zip(&bytes).filter(|(a, b)| a != b).count();
                assert!(differing <= 1, "{differing} bytes of the damaged file have changed");
                assert_eq!(seeds, [0; 0]);
                moved += 1;
            } else {
                // The damage was where nothing is, or the file began as a new one.
                assert!(seeds == (1..=20).collect::<Vec<u8>>() || bytes.is_empty());
                kept += 1;
            }
        }
        assert!(moved > 3 && kept > 3, "{moved} moved, {kept} kept");
    }
}
