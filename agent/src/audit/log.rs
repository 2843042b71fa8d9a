//! The log's files: `audit.log`, and behind it the full ones, `audit.log.N`, where N is the sequence
//! number of their first entry.
//!
//! Invariants:
//! - entries are durable before the vault's seal knows of them;
//! - entries that could not be made durable are written again in the same place, into the file as
//!   it was when it was last durable; nothing is built on what a failed flush left;
//! - at most [`AuditLimits::files`] files are kept; the oldest goes first;
//! - what does not fit the seal is left where it is, for people to look at; new entries go on
//!   behind it.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use moai_tpm::Epoch;

use super::event::AuditEvent;
use super::line::{self, LineHash, Stamp};
use super::seal::AuditSeal;
use super::verify::{AuditReport, Verifier};
use crate::disk::{Disk, DiskFile, read_all};
use crate::vault::{Vault, VaultError};

/// Name of the newest file.
pub const AUDIT_FILE: &str = "audit.log";
/// Entries that are made durable together.
const MAX_BATCH: usize = 64;

/// `[audit]`: how much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuditLimits {
    /// When a file has as many bytes, the next one begins.
    pub file_bytes: u64,
    /// How many files are kept, the newest among them.
    pub files: usize,
}

impl Default for AuditLimits {
    fn default() -> Self {
        Self { file_bytes: 1024 * 1024, files: 8 }
    }
}

/// Why the log cannot be written or read just now.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// Its files.
    #[error("the audit log cannot be {what}: {source}")]
    Disk {
        /// `read` or `written`.
        what: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
    /// The vault.
    #[error("the audit log cannot be sealed: {0}")]
    Vault(#[from] VaultError),
    /// Nobody has the log's key.
    #[error(
        "the vault keeps no audit log: none was begun on this robot, or the vault was lost; \
         entries that lie here cannot be checked"
    )]
    Unknown,
    /// No key.
    #[error("the operating system gave no randomness: {0}")]
    Randomness(#[from] getrandom::Error),
}

fn reading(source: io::Error) -> AuditError {
    AuditError::Disk { what: "read", source }
}

fn writing(source: io::Error) -> AuditError {
    AuditError::Disk { what: "written", source }
}

/// An event that waits for its entry.
#[derive(Debug, Clone)]
pub(super) struct Pending {
    pub(super) unix_seconds: u64,
    pub(super) event: AuditEvent,
}

/// What the log is made of.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) directory: PathBuf,
    pub(super) vault: Arc<Vault>,
    pub(super) limits: AuditLimits,
    pub(super) boot: String,
}

impl Place {
    fn seal(&self) -> Result<Option<AuditSeal>, AuditError> {
        Ok(self.vault.read_audit()?.and_then(|bytes| AuditSeal::from_bytes(&bytes)))
    }

    /// Checks every entry that is kept, where no agent runs; changes nothing.
    ///
    /// # Errors
    /// Disk or vault refuse, or there is no log that can be checked.
    pub(super) fn verify(&self) -> Result<AuditReport, AuditError> {
        verify(self, &self.seal()?.ok_or(AuditError::Unknown)?)
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, AuditError> {
        read_file(&*self.disk, &self.directory.join(name), longest(self.limits))
    }
}

/// The log, ready to be written.
pub(super) struct AuditLog {
    place: Place,
    seal: AuditSeal,
    /// The newest file; none until it is opened (again).
    file: Option<Box<dyn DiskFile>>,
    /// How many bytes of it count.
    length: u64,
    /// Sequence number of its first entry.
    first: u64,
    is_sealed: bool,
}

impl AuditLog {
    /// Opens the log of `epoch`; a log that nobody has the key of is moved aside and a new one
    /// begins. Returns what has to be said about it, to be written first.
    ///
    /// # Errors
    /// Disk or vault refuse.
    pub(super) fn open(
        place: Place,
        epoch: Epoch,
        now: u64,
    ) -> Result<(Self, Vec<AuditEvent>), AuditError> {
        let Some(seal) = place.seal()? else { return Self::begin(place, epoch, now) };
        let mut events = Vec::new();
        let mut log = Self { place, seal, file: None, length: 0, first: 0, is_sealed: true };
        let found = log.read_end()?;
        if found != Some(log.seal.newest) && log.seal.newest > 0 {
            events.push(AuditEvent::LogDamaged { newest: log.seal.newest, found });
        }
        if log.seal.present().epoch != epoch {
            events.push(AuditEvent::EpochBegun { epoch: epoch.0 });
        }
        Ok((log, events))
    }

    fn begin(place: Place, epoch: Epoch, now: u64) -> Result<(Self, Vec<AuditEvent>), AuditError> {
        let files = files(&*place.disk, &place.directory)?;
        let mut earlier = None;
        for (_, name) in &files {
            let aside = format!("{name}.unknown-{now}");
            place
                .disk
                .rename(&place.directory.join(name), &place.directory.join(&aside))
                .map_err(writing)?;
            earlier = Some(aside);
        }
        if earlier.is_some() {
            place.disk.sync_directory(&place.directory).map_err(writing)?;
        }
        let seal = AuditSeal::begin(epoch)?;
        place.vault.write_audit(&seal.to_bytes())?;
        let log = Self { place, seal, file: None, length: 0, first: 1, is_sealed: true };
        Ok((log, vec![AuditEvent::LogBegun { earlier }]))
    }

    /// Looks at the newest file that has a line, and goes on behind its last whole line. Returns the
    /// sequence number of the newest entry that fits the seal.
    fn read_end(&mut self) -> Result<Option<u64>, AuditError> {
        let path = self.place.directory.join(AUDIT_FILE);
        let file = self.place.disk.open(&path).map_err(reading)?;
        let bytes = read_all(&*file, longest(self.place.limits)).map_err(reading)?;
        let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        self.length = end as u64;
        let whole = &bytes[..end];
        let mut newest = None;
        let mut first = None;
        let mut verifier = Verifier::anywhere(&self.seal);
        for (number, text) in (1..).zip(lines(whole)) {
            if let Some(placed) = verifier.line(AUDIT_FILE, number, text) {
                first.get_or_insert(placed.sequence);
                newest = Some(placed);
            }
        }
        let is_empty = whole.is_empty();
        self.first = first.unwrap_or(self.seal.newest + 1);
        if let Some(newest) = newest {
            let sequence = newest.sequence;
            if sequence > self.seal.newest {
                // The power went after the entries were durable and before the seal was.
                (self.seal.newest, self.seal.hash) = (sequence, newest.hash);
                self.is_sealed = false;
            }
            return Ok(Some(sequence));
        }
        if is_empty && self.seal.newest > 0 {
            return self.end_of_full_file();
        }
        Ok(None)
    }

    /// The newest entry of the newest full file: the next file was not begun yet.
    fn end_of_full_file(&self) -> Result<Option<u64>, AuditError> {
        let files = files(&*self.place.disk, &self.place.directory)?;
        let Some((_, name)) = files.iter().rfind(|(first, _)| first.is_some()) else {
            return Ok(None);
        };
        let bytes = self.place.read(name)?;
        let mut verifier = Verifier::anywhere(&self.seal);
        let lines = (1..).zip(lines(&bytes));
        let placed = lines.filter_map(|(number, text)| verifier.line(name, number, text)).last();
        Ok(placed.map(|placed| placed.sequence))
    }

    /// Writes what waits; an entry leaves `pending` when it is durable.
    ///
    /// # Errors
    /// Disk or vault refuse; what is still in `pending` is to be tried again.
    pub(super) fn append(&mut self, pending: &mut VecDeque<Pending>) -> Result<(), AuditError> {
        while !pending.is_empty() {
            let next_key =
                |pending: &Pending| matches!(pending.event, AuditEvent::EpochBegun { .. });
            // An epoch's last entry is the one that says so.
            let most = pending.iter().position(next_key).map_or(pending.len(), |index| index + 1);
            let batch = most.min(MAX_BATCH);
            self.write(pending.iter().take(batch))?;
            let last = pending.drain(..batch).next_back();
            self.is_sealed = false;
            if let Some(Pending { event: AuditEvent::EpochBegun { epoch }, .. }) = last {
                self.seal.next_epoch(Epoch(epoch))?;
            }
            self.settle()?;
        }
        self.settle()
    }

    /// Makes the vault know of the newest entry.
    ///
    /// # Errors
    /// The vault refuses.
    pub(super) fn settle(&mut self) -> Result<(), AuditError> {
        if !self.is_sealed {
            self.place.vault.write_audit(&self.seal.to_bytes())?;
            self.is_sealed = true;
        }
        Ok(())
    }

    fn write<'a>(&mut self, batch: impl Iterator<Item = &'a Pending>) -> Result<(), AuditError> {
        let (mut newest, mut hash) = (self.seal.newest, self.seal.hash);
        let mut bytes = Vec::new();
        for Pending { unix_seconds, event } in batch {
            let key = &self.seal.present().key;
            let stamp = Stamp { unix_seconds: *unix_seconds, boot: &self.place.boot };
            let written = line::write(key, newest + 1, stamp, event, hash);
            let text = match written {
                Ok(text) => text,
                Err(error) => {
                    tracing::error!(%error, "an audit entry cannot be written");
                    continue;
                }
            };
            (newest, hash) = (newest + 1, LineHash::of(&text));
            bytes.extend_from_slice(&text);
            bytes.push(b'\n');
        }
        let added = bytes.len() as u64;
        if self.length > 0 && self.length + added > self.place.limits.file_bytes {
            self.begin_file();
        }
        self.put(&bytes).map_err(writing)?;
        self.length += added;
        (self.seal.newest, self.seal.hash) = (newest, hash);
        Ok(())
    }

    /// After any failure the file is opened anew and cut to what is known to be durable.
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut file = if let Some(file) = self.file.take() {
            file
        } else {
            let mut file = self.place.disk.open(&self.place.directory.join(AUDIT_FILE))?;
            if file.length()? != self.length {
                file.truncate(self.length)?;
            }
            self.place.disk.sync_directory(&self.place.directory)?;
            file
        };
        file.write_at(bytes, self.length)?;
        file.sync()?;
        self.file = Some(file);
        Ok(())
    }

    /// The newest file is full: it gets its number, and the oldest goes. What fails here is done
    /// when the next file is full; until then the newest one grows.
    fn begin_file(&mut self) {
        let directory = &self.place.directory;
        let full = directory.join(format!("{AUDIT_FILE}.{}", self.first));
        let renamed = self
            .place
            .disk
            .rename(&directory.join(AUDIT_FILE), &full)
            .and_then(|()| self.place.disk.sync_directory(directory));
        if let Err(error) = renamed {
            tracing::warn!(%error, "the audit log cannot begin another file");
            return;
        }
        (self.file, self.length, self.first) = (None, 0, self.seal.newest + 1);
        if let Err(error) = self.drop_oldest() {
            tracing::warn!(%error, "an old audit file stays");
        }
    }

    fn drop_oldest(&mut self) -> Result<(), AuditError> {
        let files = files(&*self.place.disk, &self.place.directory)?;
        let full: Vec<(u64, String)> =
            files.into_iter().filter_map(|(first, name)| Some((first?, name))).collect();
        let keep = self.place.limits.files.saturating_sub(1);
        let dropped = full.len().saturating_sub(keep);
        if dropped == 0 {
            return Ok(());
        }
        let oldest = full.get(dropped).map_or(self.first, |(first, _)| *first);
        // First the seal: what it does not ask for may go.
        self.seal.forget_before(oldest);
        self.is_sealed = false;
        self.settle()?;
        for (_, name) in &full[..dropped] {
            self.place.disk.remove(&self.place.directory.join(name)).map_err(writing)?;
        }
        self.place.disk.sync_directory(&self.place.directory).map_err(writing)
    }

    /// Checks every entry that is kept.
    ///
    /// # Errors
    /// The disk refuses.
    pub(super) fn verify(&self) -> Result<AuditReport, AuditError> {
        verify(&self.place, &self.seal)
    }
}

fn verify(place: &Place, seal: &AuditSeal) -> Result<AuditReport, AuditError> {
    let files = files(&*place.disk, &place.directory)?;
    let mut verifier = Verifier::new(seal);
    for (index, (_, name)) in files.iter().enumerate() {
        let next = files.get(index + 1).and_then(|(first, _)| *first);
        if next.is_some_and(|next| next <= seal.oldest) {
            // All of it is older than what is kept.
            continue;
        }
        let bytes = place.read(name)?;
        for (number, text) in (1..).zip(lines(&bytes)) {
            verifier.line(name, number, text);
        }
        if !bytes.is_empty() && bytes.last() != Some(&b'\n') {
            verifier.torn();
        }
    }
    Ok(verifier.end())
}

/// A file that cannot begin another one grows, but not for ever.
fn longest(limits: AuditLimits) -> u64 {
    limits.file_bytes.saturating_mul(16).max(16 * 1024 * 1024)
}

fn read_file(disk: &dyn Disk, path: &Path, limit: u64) -> Result<Vec<u8>, AuditError> {
    disk.open(path).and_then(|file| read_all(&*file, limit)).map_err(reading)
}

/// The whole lines of a file, without their line feeds.
fn lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split_inclusive(|byte| *byte == b'\n').filter_map(|line| line.strip_suffix(b"\n"))
}

/// The log's files, oldest first, full ones with the number in their name.
fn files(disk: &dyn Disk, directory: &Path) -> Result<Vec<(Option<u64>, String)>, AuditError> {
    let mut full = Vec::new();
    let mut newest = None;
    for name in disk.names(directory).map_err(reading)? {
        let Some(rest) = name.strip_prefix(AUDIT_FILE) else { continue };
        if rest.is_empty() {
            newest = Some((None, name));
        } else if let Some(first) = rest.strip_prefix('.').and_then(|text| text.parse().ok()) {
            full.push((Some(first), name));
        }
    }
    full.sort();
    full.extend(newest);
    Ok(full)
}

/// All lines of the log, oldest first, unchecked: for people to read.
///
/// # Errors
/// The disk refuses.
pub fn read_lines(
    disk: &dyn Disk,
    directory: &Path,
    limits: AuditLimits,
) -> Result<Vec<String>, AuditError> {
    let mut all = Vec::new();
    for (_, name) in files(disk, directory)? {
        let bytes = read_file(disk, &directory.join(name), longest(limits))?;
        all.extend(lines(&bytes).map(|line| String::from_utf8_lossy(line).into_owned()));
    }
    Ok(all)
}

#[cfg(test)]
mod tests;
