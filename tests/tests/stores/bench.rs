//! A store to be tested, and sessions to put into it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use moai_server::store::{
    Budget, DirectoryStore, Held, Record, RedisStore, SessionKey, Store, UnixMillis,
};
use moai_tests::pki::Pki;
use moai_tests::redis::Redis;
use moai_transport::chunk;
use moai_transport::ids::{ContextId, Digest, SessionId};
use moai_transport::keys::SessionSigningKey;
use tempfile::TempDir;

/// More than the tests need.
pub(crate) const AMPLE: Budget = Budget { sessions: 100, bytes: 1 << 30 };
/// The time of tests begins now: Redis has a clock of its own.
pub(crate) fn start() -> UnixMillis {
    UnixMillis::now()
}

pub(crate) const LIFETIME: Duration = Duration::from_mins(10);
/// For so long after a session's end its name is kept.
pub(crate) const OPENS_OUTLIVE: Duration = Duration::from_mins(5);

const KEY_LEN: usize = 300_000;

/// A store of one of both kinds.
pub(crate) struct Bench {
    store: Option<Box<dyn Store>>,
    pub(crate) redis: Option<Redis>,
    directory: TempDir,
}

impl Bench {
    pub(crate) fn directory() -> Result<Self> {
        let mut bench = Self { store: None, redis: None, directory: tempfile::tempdir()? };
        bench.open_again()?;
        Ok(bench)
    }

    pub(crate) async fn redis() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let pki = Pki::new(&directory.path().join("pki"))?;
        let redis = Redis::start(&directory.path().join("redis"), &pki).await?;
        let mut bench = Self { store: None, redis: Some(redis), directory };
        bench.open_again()?;
        Ok(bench)
    }

    pub(crate) fn store(&self) -> Result<&dyn Store> {
        self.store.as_deref().context("the store is closed")
    }

    /// What the next run, or another worker, finds.
    pub(crate) fn open_again(&mut self) -> Result<()> {
        self.store = None;
        let tenants = ["acme".parse()?, "globex".parse()?];
        self.store = Some(match &self.redis {
            Some(redis) => {
                let ca = Some(fs::read(redis.ca())?);
                Box::new(RedisStore::new(&redis.url().parse()?, ca, tenants)?)
            }
            None => Box::new(DirectoryStore::open(&self.path())?),
        });
        Ok(())
    }

    /// Nothing has the store open any more.
    pub(crate) fn close(&mut self) {
        self.store = None;
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("store")
    }

    /// Where the directory store has a session's files.
    pub(crate) fn file(&self, key: &SessionKey, extension: &str) -> PathBuf {
        self.path().join("sessions").join(format!("{key}.{extension}"))
    }

    /// All that the store keeps, past its interface: names and bytes.
    pub(crate) async fn dump(&self) -> Result<Vec<(String, Vec<u8>)>> {
        match &self.redis {
            Some(redis) => redis.dump().await,
            None => files(&self.path().join("sessions")),
        }
    }

    /// Whether anything of these keys, or of what is known of them, is left.
    pub(crate) async fn holds(&self, subject: &Subject) -> Result<bool> {
        let dump = self.dump().await?;
        let manifest = &subject.record.manifest;
        let digests = manifest.chunk_digests.iter().chain([&manifest.key_digest]);
        let needles: Vec<&[u8]> = subject
            .bytes
            .chunks_exact(32)
            .chain(digests.map(|digest| digest.0.as_slice()))
            .chain([manifest.session_key.as_bytes().as_slice()])
            .collect();
        let finder = aho_corasick::AhoCorasick::new(&needles)?;
        Ok(dump.iter().any(|(_, bytes)| finder.is_match(bytes)))
    }
}

fn files(directory: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        all.push((path.display().to_string(), fs::read(path)?));
    }
    all.sort();
    Ok(all)
}

/// A session with keys.
#[derive(Clone)]
pub(crate) struct Subject {
    pub(crate) key: SessionKey,
    pub(crate) record: Record,
    pub(crate) bytes: Vec<u8>,
}

impl Subject {
    /// Session `id` of a robot such as `acme.r1`, opened at `now` with keys that follow from `seed`.
    pub(crate) fn new(robot: &str, id: u8, seed: u8, now: UnixMillis) -> Result<Self> {
        let block = |index: u32| {
            let mut input = index.to_be_bytes().to_vec();
            input.push(seed);
            Digest::of(&input).0
        };
        let mut bytes: Vec<u8> = (0_u32..).flat_map(block).take(KEY_LEN).collect();
        bytes.shrink_to_fit();
        let session_key = SessionSigningKey::from_seed(&[seed; 32]).public();
        let context = ContextId(Digest([1; 32]));
        let manifest = chunk::manifest(context, LIFETIME, session_key, &bytes, 1)?;
        let expires_at = now + LIFETIME;
        let record = Record {
            manifest,
            open_number: 1,
            expires_at,
            opens_until: expires_at + OPENS_OUTLIVE,
            attested: None,
            registered: false,
        };
        let key = SessionKey { identity: robot.parse()?, session: SessionId::new(1, [id; 10]) };
        Ok(Self { key, record, bytes })
    }

    /// Its next open.
    pub(crate) fn numbered(&self, open_number: u64) -> Record {
        Record { open_number, ..self.record.clone() }
    }

    pub(crate) fn chunks(&self) -> impl Iterator<Item = (usize, &[u8])> {
        self.bytes.chunks(self.record.manifest.chunk_len as usize).enumerate()
    }

    /// The state of its chunks when these are there.
    pub(crate) fn held(&self, indices: impl IntoIterator<Item = usize>) -> Held {
        Held::these(self.record.manifest.chunk_digests.len(), indices)
    }

    /// Opens it and stores all its chunks.
    pub(crate) async fn put_into(&self, store: &dyn Store, now: UnixMillis) -> Result<()> {
        store.open(&self.key, &self.record, AMPLE, now).await?;
        for (index, chunk) in self.chunks() {
            anyhow::ensure!(store.put_chunk(&self.key, index, chunk).await?);
        }
        Ok(())
    }
}
