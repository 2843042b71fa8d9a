//! Keys made before anybody needs them, so that opening a task costs a registration and no key
//! generation.
//!
//! Invariants:
//! - a seed is one session's: its keys' file goes before its record in the vault is adopted, and a
//!   record without a file is never used;
//! - there are never more key sets than configured, and at a start nothing is left of others;
//! - keys are used only if their file is the one their record names, byte for byte;
//! - one key set is made at a time, on one thread of low priority, and none while a session makes
//!   its own;
//! - while sessions are held none is made.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use moai_fhe::Context;
use moai_transport::ids::{ContextId, Digest, SessionId};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::custody::Custodian;
use crate::engines::Engines;
use crate::secrets::OsEntropy;
use crate::services::{SeedError, fresh_seed, off_thread};
use crate::session::registry::SessionRegistry;
use crate::vault::{Vault, VaultError, WarmFacts, WarmRecord};

/// Most key sets that can be kept ready.
pub const MAX_WARM: usize = 4;
const QUEUE_LEN: usize = 8;
const RETRY_PAUSE: Duration = Duration::from_mins(1);
/// Below what the robot is there for (`nice(2)`).
const NICE: i32 = 10;
const SUFFIX: &str = "keys";

/// Keys for a session to take.
pub struct WarmKeys {
    /// Their record, which the session's replaces.
    pub record: WarmRecord,
    /// The evaluation keys.
    pub keys: Vec<u8>,
}

/// How many key sets are ready, of how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WarmState {
    /// Ready.
    pub ready: usize,
    /// Wanted.
    pub wanted: usize,
}

/// What the pool works with.
pub struct WarmParts {
    /// Key sets to keep ready, at most [`MAX_WARM`].
    pub wanted: usize,
    /// Directory of the evaluation keys.
    pub directory: PathBuf,
    /// Keeps the seeds.
    pub vault: Arc<Vault>,
    /// Makes the keys.
    pub engines: Arc<dyn Engines>,
    /// Second source of randomness.
    pub custodian: Arc<dyn Custodian>,
    /// Dates the names.
    pub clock: Arc<dyn Clock>,
    /// Says when sessions are held.
    pub registry: SessionRegistry,
}

enum Request {
    Take(ContextId, oneshot::Sender<Option<WarmKeys>>),
    Destroy(oneshot::Sender<usize>),
}

/// A handle to the pool's owner task.
#[derive(Clone)]
pub struct WarmPool {
    requests: mpsc::Sender<Request>,
    busy: Arc<watch::Sender<usize>>,
    state: watch::Receiver<WarmState>,
}

/// A session makes keys as long as this lives.
pub struct Busy(Arc<watch::Sender<usize>>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count = count.saturating_sub(1));
    }
}

/// Why no key set was made.
#[derive(Debug, thiserror::Error)]
enum MakeError {
    #[error(transparent)]
    Seed(#[from] SeedError),
    #[error("no keys can be made: {0}")]
    Engine(#[from] moai_fhe::EngineError),
    #[error("no thread to make keys on: {0}")]
    Thread(#[from] rayon::ThreadPoolBuildError),
    #[error("the evaluation keys cannot be written: {0}")]
    File(#[from] std::io::Error),
    #[error(transparent)]
    Vault(#[from] VaultError),
}

impl WarmPool {
    /// Drops what belongs to nothing, and starts the owner task.
    ///
    /// # Errors
    /// The vault cannot be read.
    pub fn start(parts: WarmParts, stop: CancellationToken) -> Result<Self, VaultError> {
        let ready = swept(&parts)?;
        let (requests, incoming) = mpsc::channel(QUEUE_LEN);
        let (busy, waiting) = watch::channel(0);
        let wanted = parts.wanted;
        let (told, state) = watch::channel(WarmState { ready: ready.len(), wanted });
        let held = parts.registry.held();
        let owner = Owner { parts: Arc::new(parts), ready, making: None, told, busy: waiting };
        tokio::spawn(owner.run(incoming, held, stop));
        Ok(Self { requests, busy: Arc::new(busy), state })
    }

    /// Takes a key set made for this context, if one is ready.
    pub async fn take(&self, context: ContextId) -> Option<WarmKeys> {
        let (reply, taken) = oneshot::channel();
        self.requests.send(Request::Take(context, reply)).await.ok()?;
        taken.await.ok()?
    }

    /// Destroys every key set, ready or under way; returns how many seeds were erased.
    pub async fn destroy(&self) -> usize {
        let (reply, destroyed) = oneshot::channel();
        // An owner that has ended with the agent makes none any more.
        if self.requests.send(Request::Destroy(reply)).await.is_err() {
            return 0;
        }
        destroyed.await.unwrap_or(0)
    }

    /// Keeps the pool from making keys while a session does.
    #[must_use]
    pub fn busy(&self) -> Busy {
        self.busy.send_modify(|count| *count += 1);
        Busy(Arc::clone(&self.busy))
    }

    /// How many are ready.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<WarmState> {
        self.state.clone()
    }
}

struct Owner {
    parts: Arc<WarmParts>,
    ready: Vec<WarmRecord>,
    making: Option<JoinHandle<Result<WarmRecord, MakeError>>>,
    told: watch::Sender<WarmState>,
    busy: watch::Receiver<usize>,
}

impl Owner {
    async fn run(
        mut self,
        mut requests: mpsc::Receiver<Request>,
        mut held: watch::Receiver<bool>,
        stop: CancellationToken,
    ) {
        let mut pause = Duration::ZERO;
        loop {
            let state = WarmState { ready: self.ready.len(), wanted: self.parts.wanted };
            self.told.send_replace(state);
            let wants = self.making.is_none() && self.ready.len() < self.parts.wanted;
            let mut busy = self.busy.clone();
            let turn = async {
                tokio::time::sleep(pause).await;
                // Both senders live as long as this task.
                let _ = held.wait_for(|held| !held).await;
                let _ = busy.wait_for(|sessions| *sessions == 0).await;
            };
            tokio::select! {
                () = stop.cancelled() => return,
                request = requests.recv() => match request {
                    None => return,
                    Some(Request::Take(context, reply)) => {
                        let taken = self.take(context).await;
                        // Who asked may have gone: the seed is used by nobody then.
                        let _ = reply.send(taken);
                    }
                    Some(Request::Destroy(reply)) => {
                        let destroyed = self.destroy().await;
                        let _ = reply.send(destroyed);
                    }
                },
                () = turn, if wants => {
                    let parts = Arc::clone(&self.parts);
                    self.making = Some(tokio::spawn(off_thread(move || make(&parts))));
                }
                made = async {
                    match &mut self.making {
                        Some(making) => making.await,
                        None => std::future::pending().await,
                    }
                } => {
                    self.making = None;
                    pause = self.made(made);
                }
            }
        }
    }

    fn made(
        &mut self,
        made: Result<Result<WarmRecord, MakeError>, tokio::task::JoinError>,
    ) -> Duration {
        match made {
            Ok(Ok(record)) => {
                tracing::info!("a key set is ready for the next session");
                self.ready.push(record);
                Duration::ZERO
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "no key set can be made ahead; trying again");
                RETRY_PAUSE
            }
            Err(error) => {
                tracing::error!(%error, "making keys ahead failed");
                RETRY_PAUSE
            }
        }
    }

    async fn take(&mut self, context: ContextId) -> Option<WarmKeys> {
        loop {
            let index = self.ready.iter().position(|it| it.facts.context == context)?;
            let record = self.ready.remove(index);
            let parts = Arc::clone(&self.parts);
            let taken = off_thread(move || match read(&parts.directory, &record) {
                Ok(keys) => Some(WarmKeys { record, keys }),
                Err(error) => {
                    tracing::warn!(%error, "keys made ahead are not usable");
                    erase(&parts, &record.id);
                    None
                }
            })
            .await;
            if taken.is_some() {
                return taken;
            }
        }
    }

    async fn destroy(&mut self) -> usize {
        if let Some(making) = self.making.take()
            && let Ok(Ok(record)) = making.await
        {
            self.ready.push(record);
        }
        let (parts, doomed) = (Arc::clone(&self.parts), std::mem::take(&mut self.ready));
        off_thread(move || {
            for record in &doomed {
                erase(&parts, &record.id);
            }
            doomed.len()
        })
        .await
    }
}

fn file(directory: &Path, id: &SessionId) -> PathBuf {
    directory.join(format!("{id}.{SUFFIX}"))
}

/// Makes a key set: the file first, then the record.
fn make(parts: &WarmParts) -> Result<WarmRecord, MakeError> {
    let context = Context::tfhe();
    let seed = Arc::new(fresh_seed(&*parts.custodian)?);
    let milliseconds = u64::try_from(parts.clock.unix().as_millis()).unwrap_or(u64::MAX);
    let random = OsEntropy::bytes().map_err(SeedError::from)?;
    let id = SessionId::new(milliseconds, random);
    // A pool of its own, which ends with its work and what it left on its stack.
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .thread_name(|_| "warm-keys".to_owned())
        .start_handler(|_| {
            // At normal priority it works too.
            let _ = rustix::process::nice(NICE);
        })
        .build()?;
    let engines = Arc::clone(&parts.engines);
    let fhe_seed = seed.fhe_seed(context.scheme_name());
    let context_id = ContextId(Digest(context.digest()));
    let keys = pool.install(move || engines.setup(&context, &fhe_seed)?.evaluation_keys())?;
    std::fs::create_dir_all(&parts.directory)?;
    write(&file(&parts.directory, &id), &keys)?;
    let facts = WarmFacts {
        context: context_id,
        key_len: keys.len() as u64,
        key_digest: Digest::of(&keys),
    };
    let record = WarmRecord { id, seed, facts };
    if let Err(error) = parts.vault.write_warm(&record) {
        remove(&file(&parts.directory, &record.id));
        return Err(error.into());
    }
    Ok(record)
}

/// Reads keys and removes their file.
fn read(directory: &Path, record: &WarmRecord) -> Result<Vec<u8>, std::io::Error> {
    let path = file(directory, &record.id);
    let limit = usize::try_from(record.facts.key_len).unwrap_or(usize::MAX);
    let keys = crate::custody::files::read_capped(&path, limit)?;
    std::fs::remove_file(&path)?;
    if Digest::of(&keys) == record.facts.key_digest {
        Ok(keys)
    } else {
        Err(std::io::Error::other("the file was changed"))
    }
}

fn write(path: &Path, keys: &[u8]) -> std::io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    // What a power cut leaves half written, its digest gives away.
    file.write_all(keys)
}

fn remove(path: &Path) {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(%error, path = %path.display(), "a file of keys made ahead stays");
        }
        _ => {}
    }
}

fn erase(parts: &WarmParts, id: &SessionId) {
    remove(&file(&parts.directory, id));
    if let Err(error) = parts.vault.erase_warm(id) {
        tracing::error!(%error, "a seed made ahead stays in the vault");
    }
}

/// The usable key sets of an earlier run, at most as many as are wanted; nothing else is left.
fn swept(parts: &WarmParts) -> Result<Vec<WarmRecord>, VaultError> {
    let mut ready = Vec::new();
    for record in parts.vault.load_warm()? {
        let path = file(&parts.directory, &record.id);
        let is_whole = std::fs::metadata(&path).is_ok_and(|it| it.len() == record.facts.key_len);
        if is_whole && ready.len() < parts.wanted {
            ready.push(record);
        } else {
            erase(parts, &record.id);
        }
    }
    // There is no directory before the first key set.
    for entry in std::fs::read_dir(&parts.directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if !ready.iter().any(|record| file(&parts.directory, &record.id) == path) {
            remove(&path);
        }
    }
    Ok(ready)
}
