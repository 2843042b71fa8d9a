//! Keys made before anybody needs them, so that opening a task costs a registration and no key
//! generation.
//!
//! Invariants:
//! - a seed is one session's: its keys' file goes before its record in the vault is adopted, and a
//!   record without a file is never used;
//! - there are never more key sets than configured, and at a start nothing is left of others;
//! - keys are used only if their file is the one their record names, byte for byte;
//! - key sets are for the contexts of models that the catalogue has: of the tasks that asked last, then
//!   of declared tasks, then of all others, in turn;
//! - one key set is made at a time, on one thread of low priority, and none while a session makes
//!   its own;
//! - while sessions are held none is made.

mod demand;
mod keys;
mod thread;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use moai_fhe::Context;
use moai_transport::ids::{ContextId, ModelId};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::custody::Custodian;
use crate::engines::Engines;
use crate::services::off_thread;
use crate::session::registry::SessionRegistry;
use crate::uplink::Catalogue;
use crate::vault::{Vault, VaultError, WarmRecord};

use self::demand::{Demand, id};
use self::keys::{MakeError, erase, make, read, swept};

/// Most key sets that can be kept ready.
pub const MAX_WARM: usize = 4;
const QUEUE_LEN: usize = 8;
const RETRY_PAUSE: Duration = Duration::from_mins(1);

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
    /// What there is to have keys for.
    pub catalogue: watch::Receiver<Option<Arc<Catalogue>>>,
    /// Models of declared tasks.
    pub declared: Vec<ModelId>,
}

enum Request {
    Take(Context, oneshot::Sender<Option<WarmKeys>>),
    Destroy(oneshot::Sender<usize>),
    Want { wanted: usize, declared: Vec<ModelId> },
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
        let catalogue = parts.catalogue.clone();
        let owner = Owner {
            demand: Demand::new(wanted, parts.declared.clone()),
            parts: Arc::new(parts),
            ready,
            making: None,
            told,
            busy: waiting,
        };
        tokio::spawn(owner.run(incoming, held, catalogue, stop));
        Ok(Self { requests, busy: Arc::new(busy), state })
    }

    /// Takes a key set made for this context, if one is ready.
    pub async fn take(&self, context: Context) -> Option<WarmKeys> {
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

    /// Keeps so many ready from now on, for these declared models before others.
    pub async fn want(&self, wanted: usize, declared: Vec<ModelId>) {
        // An owner that has ended with the agent makes none any more.
        let _ = self.requests.send(Request::Want { wanted, declared }).await;
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
    demand: Demand,
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
        mut catalogue: watch::Receiver<Option<Arc<Catalogue>>>,
        stop: CancellationToken,
    ) {
        let mut pause = Duration::ZERO;
        self.demand.look_into(catalogue.borrow_and_update().as_deref());
        loop {
            let state = WarmState { ready: self.ready.len(), wanted: self.demand.wanted() };
            self.told.send_replace(state);
            let next = if self.making.is_none() { self.next().cloned() } else { None };
            let wants = next.is_some();
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
                        let taken = self.take(id(&context)).await;
                        self.demand.prefer(context);
                        // Who asked may have gone: the seed is used by nobody then.
                        let _ = reply.send(taken);
                    }
                    Some(Request::Destroy(reply)) => {
                        let destroyed = self.destroy().await;
                        let _ = reply.send(destroyed);
                    }
                    Some(Request::Want { wanted, declared }) => {
                        self.demand.change(wanted, declared);
                        self.demand.look_into(catalogue.borrow().as_deref());
                        self.shrink(wanted).await;
                    }
                },
                changed = catalogue.changed() => match changed {
                    // The uplink ends after this task.
                    Err(_) => return,
                    Ok(()) => self.demand.look_into(catalogue.borrow_and_update().as_deref()),
                },
                () = turn, if wants => if let Some(context) = next {
                    self.make_room().await;
                    let parts = Arc::clone(&self.parts);
                    self.making = Some(tokio::spawn(off_thread(move || make(&parts, &context))));
                },
                made = async {
                    match &mut self.making {
                        Some(making) => making.await,
                        None => std::future::pending().await,
                    }
                } => {
                    self.making = None;
                    pause = self.made(made);
                    self.shrink(self.demand.wanted()).await;
                }
            }
        }
    }

    fn count(&self, context: ContextId) -> usize {
        self.ready.iter().filter(|record| record.facts.context == context).count()
    }

    /// For which context the next key set is to be made.
    fn next(&self) -> Option<&Context> {
        self.demand.contexts().find(|context| {
            let context = id(context);
            self.count(context) < self.demand.share(context)
        })
    }

    /// Destroys key sets of which there are more than there are to be, until there is room for one.
    async fn make_room(&mut self) {
        self.shrink(self.demand.wanted().saturating_sub(1)).await;
    }

    /// Destroys key sets of which there are more than there are to be, until `most` are left.
    async fn shrink(&mut self, most: usize) {
        while self.ready.len() > most {
            let spare = self.ready.iter().position(|record| {
                let context = record.facts.context;
                self.count(context) > self.demand.share(context)
            });
            let Some(spare) = spare else { return };
            let (parts, record) = (Arc::clone(&self.parts), self.ready.remove(spare));
            off_thread(move || erase(&parts, &record.id)).await;
        }
    }

    fn made(
        &mut self,
        made: Result<Result<WarmRecord, MakeError>, tokio::task::JoinError>,
    ) -> Duration {
        match made {
            Ok(Ok(record)) => {
                let context = record.facts.context;
                tracing::info!(%context, "a key set is ready for the next session");
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
