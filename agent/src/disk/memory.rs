//! A disk in memory that fails as told, and that can lose what was not made durable.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use super::{Disk, DiskFile};

/// A shared disk; clones are the same disk.
#[derive(Clone, Default)]
pub(crate) struct MemoryDisk(Arc<Mutex<Content>>);

#[derive(Default)]
struct Content {
    files: BTreeMap<PathBuf, Arc<Mutex<Bytes>>>,
    /// What a power cut leaves of the names.
    durable: BTreeMap<PathBuf, Arc<Mutex<Bytes>>>,
    /// How many bytes all files together may have.
    capacity: Option<u64>,
    /// Calls that fail from now on.
    failing: Option<Failing>,
}

#[derive(Default)]
struct Bytes {
    now: Vec<u8>,
    durable: Vec<u8>,
}

/// What fails.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failing {
    /// `sync`, which loses what was not durable, as the kernel does.
    Sync,
    /// Every write and every truncation.
    Writes,
    /// Every truncation.
    Truncations,
}

impl MemoryDisk {
    fn content(&self) -> MutexGuard<'_, Content> {
        self.0.lock().unwrap()
    }

    pub(crate) fn limit(&self, capacity: Option<u64>) {
        self.content().capacity = capacity;
    }

    pub(crate) fn fail(&self, failing: Option<Failing>) {
        self.content().failing = failing;
    }

    pub(crate) fn used(&self) -> u64 {
        let content = self.content();
        content.files.values().map(|file| file.lock().unwrap().now.len() as u64).sum()
    }

    pub(crate) fn read(&self, path: &Path) -> Vec<u8> {
        let content = self.content();
        content.files.get(path).map(|file| file.lock().unwrap().now.clone()).unwrap_or_default()
    }

    /// Replaces a file, durably.
    pub(crate) fn write(&self, path: &Path, bytes: &[u8]) {
        let file = Arc::new(Mutex::new(Bytes { now: bytes.to_vec(), durable: bytes.to_vec() }));
        let mut content = self.content();
        content.files.insert(path.to_owned(), Arc::clone(&file));
        content.durable.insert(path.to_owned(), file);
    }

    /// The power is cut. Of what a file got since it was last durable, `kept` bytes at its end stay.
    pub(crate) fn cut_power(&self, kept: usize) -> Self {
        let content = self.content();
        let mut files = BTreeMap::new();
        for (path, file) in &content.durable {
            let file = file.lock().unwrap();
            let mut bytes = file.durable.clone();
            let rest = file.now.get(bytes.len()..).unwrap_or_default();
            bytes.extend_from_slice(&rest[..kept.min(rest.len())]);
            files.insert(path.clone(), bytes);
        }
        let disk = Self::default();
        for (path, bytes) in files {
            disk.write(&path, &bytes);
        }
        disk
    }
}

impl Disk for MemoryDisk {
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let bytes = Arc::clone(self.content().files.entry(path.to_owned()).or_default());
        Ok(Box::new(MemoryFile { disk: self.clone(), bytes }))
    }

    fn names(&self, directory: &Path) -> io::Result<Vec<String>> {
        let content = self.content();
        let names = content.files.keys().filter(|path| path.parent() == Some(directory));
        Ok(names.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut content = self.content();
        let file = content.files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        content.files.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let removed = self.content().files.remove(path);
        removed.map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn sync_directory(&self, _: &Path) -> io::Result<()> {
        let mut content = self.content();
        content.durable = content.files.clone();
        Ok(())
    }
}

struct MemoryFile {
    disk: MemoryDisk,
    bytes: Arc<Mutex<Bytes>>,
}

impl MemoryFile {
    fn broken(&self, kinds: &[Failing]) -> io::Result<()> {
        match self.disk.content().failing {
            Some(failing) if kinds.contains(&failing) => {
                Err(io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error()))
            }
            _ => Ok(()),
        }
    }
}

impl DiskFile for MemoryFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.bytes.lock().unwrap().now.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let bytes = self.bytes.lock().unwrap();
        let start = usize::try_from(offset).unwrap();
        let found = bytes.now.get(start..start + buffer.len());
        buffer.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.broken(&[Failing::Writes])?;
        let used = self.disk.used();
        let room = self.disk.content().capacity.map_or(u64::MAX, |most| most.saturating_sub(used));
        let mut file = self.bytes.lock().unwrap();
        let start = usize::try_from(offset).unwrap();
        let end = start + bytes.len();
        let growth = end.saturating_sub(file.now.len()) as u64;
        let missing = usize::try_from(growth.saturating_sub(room)).unwrap();
        // A full disk takes what fits.
        let taken = bytes.len() - missing.min(bytes.len());
        if file.now.len() < start + taken {
            file.now.resize(start + taken, 0);
        }
        file.now[start..start + taken].copy_from_slice(&bytes[..taken]);
        drop(file);
        if taken < bytes.len() {
            return Err(io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error()));
        }
        Ok(())
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.broken(&[Failing::Writes, Failing::Truncations])?;
        self.bytes.lock().unwrap().now.resize(usize::try_from(length).unwrap(), 0);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let broken = self.broken(&[Failing::Sync]);
        let mut bytes = self.bytes.lock().unwrap();
        if broken.is_ok() {
            bytes.durable = bytes.now.clone();
        } else {
            // What the page cache still shows, the disk never gets.
            let lost = bytes.durable.len()..bytes.now.len().max(bytes.durable.len());
            for byte in bytes.now.get_mut(lost).unwrap_or_default() {
                *byte ^= 0xff;
            }
        }
        broken
    }
}
