//! The spool's file: append, cut, rewrite.
//!
//! Invariants:
//! - what lies before `length` is durable and consists of whole records; nothing else is believed;
//! - after a write that failed the file is cut back to `length`;
//! - after a sync that failed the file gets nothing more: what is live is copied into a new one;
//! - the new file takes the old one's name only when all of it is durable.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::record::{self, Record};
use super::scan::{self, Found, Scanned, Span};
use crate::disk::{Disk, DiskFile};

/// How much is copied at a time.
const COPY_LEN: usize = 256 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trust {
    Whole,
    /// There may be something behind `length`.
    Tail,
    /// What was written is not what is on disk, or the file's name is not durable.
    Nothing,
}

pub(super) struct SpoolFile {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    file: Box<dyn DiskFile>,
    length: u64,
    /// Sequence number of the newest record.
    sequence: u64,
    trust: Trust,
}

impl SpoolFile {
    /// Opens or creates the file, hands what is in it to `take`, and cuts what a torn write left.
    ///
    /// # Errors
    /// The operating system refuses.
    pub(super) fn open(
        disk: Arc<dyn Disk>,
        path: PathBuf,
        take: &mut dyn FnMut(Found),
    ) -> io::Result<(Self, Scanned)> {
        let file = disk.open(&path)?;
        let scanned = scan::scan(&*file, take)?;
        let trust = if scanned.is_torn { Trust::Tail } else { Trust::Whole };
        let (length, sequence) = (scanned.end, scanned.sequence);
        disk.sync_directory(parent(&path))?;
        Ok((Self { disk, path, file, length, sequence, trust }, scanned))
    }

    /// How long it is.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Whether only [`Self::rewrite`] helps.
    pub(super) fn is_lost(&self) -> bool {
        self.trust == Trust::Nothing
    }

    /// Adds records and makes them durable together; returns where they lie.
    ///
    /// # Errors
    /// The disk refuses; none of them was taken.
    pub(super) fn append(&mut self, records: &[Record]) -> io::Result<Vec<Span>> {
        self.cut()?;
        let mut bytes = Vec::new();
        let mut spans = Vec::new();
        let mut sequence = self.sequence;
        for record in records {
            sequence += 1;
            let offset = self.length + bytes.len() as u64;
            let len = record::frame(&record.payload(), sequence, &mut bytes);
            spans.push(Span { offset, len });
        }
        // Whatever becomes of this write, its numbers are used up.
        self.sequence = sequence;
        if let Err(error) = self.file.write_at(&bytes, self.length) {
            self.trust = Trust::Tail;
            if let Err(error) = self.cut() {
                tracing::warn!(%error, "the spool is not cut yet");
            }
            return Err(error);
        }
        self.sync()?;
        self.length += bytes.len() as u64;
        Ok(spans)
    }

    /// The payload of a record, if it is still as it was written.
    ///
    /// # Errors
    /// The operating system refuses to read.
    pub(super) fn payload(&self, span: Span) -> io::Result<Option<Vec<u8>>> {
        scan::payload(&*self.file, span)
    }

    /// Writes `first` and copies `live` records into a new file, which takes this one's place; returns
    /// where the copies lie. A record that is not as it was written any more has no copy.
    ///
    /// # Errors
    /// The disk refuses; this file is as it was, or must be rewritten again, see [`Self::is_lost`].
    pub(super) fn rewrite(
        &mut self,
        first: &[Record],
        live: &[Span],
    ) -> io::Result<Vec<Option<Span>>> {
        let path = beside(&self.path, "new");
        let mut file = self.disk.open(&path)?;
        file.truncate(0)?;
        let mut spans = Vec::new();
        let mut bytes = Vec::new();
        let (mut written, mut sequence) = (0, self.sequence);
        for record in first {
            sequence += 1;
            record::frame(&record.payload(), sequence, &mut bytes);
        }
        for span in live {
            let Some(payload) = self.payload(*span)? else {
                spans.push(None);
                continue;
            };
            sequence += 1;
            let offset = written + bytes.len() as u64;
            let len = record::frame(&payload, sequence, &mut bytes);
            spans.push(Some(Span { offset, len }));
            if bytes.len() >= COPY_LEN {
                file.write_at(&bytes, written)?;
                written += bytes.len() as u64;
                bytes.clear();
            }
        }
        file.write_at(&bytes, written)?;
        written += bytes.len() as u64;
        file.sync()?;
        self.disk.rename(&path, &self.path)?;
        (self.file, self.length, self.sequence) = (file, written, sequence);
        let named = self.disk.sync_directory(parent(&self.path));
        self.trust = if named.is_ok() { Trust::Whole } else { Trust::Nothing };
        if let Err(error) = named {
            tracing::error!(%error, "the spool's new file may vanish; it will be written again");
        }
        Ok(spans)
    }

    /// Keeps a copy of a damaged file for people to look at, unless there is one already; returns
    /// its name.
    ///
    /// # Errors
    /// The disk refuses.
    pub(super) fn keep_copy(&self, unix_seconds: u64) -> io::Result<Option<String>> {
        let damaged = beside(&self.path, "damaged-");
        let prefix = name(&damaged);
        let names = self.disk.names(parent(&self.path))?;
        if names.iter().any(|name| name.starts_with(&prefix)) {
            return Ok(None);
        }
        let copy = beside(&self.path, &format!("damaged-{unix_seconds}"));
        let mut file = self.disk.open(&copy)?;
        let length = self.file.length()?;
        let mut at = 0;
        while at < length {
            let len = usize::try_from(length - at).unwrap_or(COPY_LEN).min(COPY_LEN);
            let mut block = vec![0; len];
            self.file.read_at(&mut block, at)?;
            file.write_at(&block, at)?;
            at += len as u64;
        }
        file.sync()?;
        Ok(Some(name(&copy)))
    }

    /// Cuts what is behind `length`.
    fn cut(&mut self) -> io::Result<()> {
        match self.trust {
            Trust::Whole => Ok(()),
            Trust::Tail => {
                self.file.truncate(self.length)?;
                self.sync()?;
                self.trust = Trust::Whole;
                Ok(())
            }
            Trust::Nothing => Err(io::Error::other("its last flush failed")),
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync().inspect_err(|_| self.trust = Trust::Nothing)
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("."))
}

fn beside(path: &Path, extension: &str) -> PathBuf {
    path.with_file_name(format!("{}.{extension}", name(path)))
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
