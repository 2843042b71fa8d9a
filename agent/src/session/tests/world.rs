//! An agent between a server and onboard software that are doubles, on a clock that stands still
//! unless all wait. Each run of the agent has an async runtime of its own: dropping that is `kill -9`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use moai_tpm::{Epoch, RootSecret};
use moai_transport::ids::SessionId;
use moai_transport::link::{self, FarEnd, LinkError, LinkEvent, Message, Outgoing, PublishError};
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::engine::{CARD, Faults, TinyEngines, window};
use super::server::{Server, Signer, identity};
use crate::audit::Audit;
use crate::clock::{BootId, BootInstant, Clock};
use crate::conditions::Conditions;
use crate::config::{SessionsConfig, WhenFull};
use crate::custody::{Custodian, CustodianKind, CustodyError};
use crate::disk::memory::MemoryDisk;
use crate::echoes::Echoes;
use crate::engines::Engines;
use crate::live::{LiveSettings, Policy};
use crate::onboard::{Onboard, ReleaseStep, Topics};
use crate::secrets::VaultKey;
use crate::services::Services;
use crate::session::registry::SessionRegistry;
use crate::spool::{Order, Spool, SpoolLimits};
use crate::status::{StatusBoard, TaskStatus};
use crate::tasks::Tasks;
use crate::ttl::Lifetimes;
use crate::uplink::{Believed, LinkState, Started, Uplink};
use crate::vault::{LockedVault, SessionRecord, Vault};
use crate::warm::{WarmParts, WarmPool};
use crate::watchdog::Watchdog;

/// When tests begin, in seconds since 1970.
const BEGIN: Duration = Duration::from_secs(1_790_000_000);
const PREFIX: &str = "moai";
const TASK: &str = "arm";
/// Where whoever hands windows over wants their outcomes too.
const REPLIES: &str = "windows/outcomes";

/// What may be configured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setting {
    pub(super) ttl: Duration,
    pub(super) budget: u64,
    pub(super) warm: usize,
    pub(super) order: Order,
    pub(super) when_full: WhenFull,
    pub(super) spool_bytes: u64,
}

impl Default for Setting {
    fn default() -> Self {
        Self {
            ttl: Duration::from_mins(1),
            budget: 1000,
            warm: 0,
            order: Order::OldestFirst,
            when_full: WhenFull::DropOldest,
            spool_bytes: SpoolLimits::default().max_bytes,
        }
    }
}

impl Setting {
    fn policy(&self) -> Policy {
        Policy { order: self.order, when_full: self.when_full }
    }

    fn spool_limits(&self) -> SpoolLimits {
        SpoolLimits { max_bytes: self.spool_bytes, ..SpoolLimits::default() }
    }

    fn live(&self) -> LiveSettings {
        let ttl = self.ttl;
        LiveSettings {
            sessions: SessionsConfig {
                lifetimes: Lifetimes { general: ttl, sensitive: ttl, long: ttl },
                warm: self.warm,
                decryption_budget: self.budget,
            },
            spool: self.spool_limits(),
            tasks: Vec::new(),
            policies: [(TASK.parse().unwrap(), self.policy())].into(),
        }
    }
}

/// A job, as onboard software names it.
pub(super) type JobName = (String, u64);

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// With the number of its window.
    Answer(i64),
    /// With a code.
    Error(String),
}

/// What onboard software has heard.
#[derive(Default)]
pub(super) struct Heard {
    pub(super) jobs: BTreeMap<JobName, End>,
    /// Codes of refusals that name no job.
    pub(super) refusals: Vec<String>,
    /// How many of them were for windows.
    refused_windows: usize,
    pub(super) states: Vec<Value>,
    /// The newest job of each session in this run of the agent.
    newest: BTreeMap<String, u64>,
    /// Jobs may end in another order than that of their numbers.
    is_unordered: bool,
    /// All outcomes, with their topics.
    published: Vec<(String, Bytes)>,
}

/// Everything, whatever becomes of the agent.
pub(super) struct World {
    pub(super) setting: Setting,
    pub(super) vault: Arc<Vault>,
    pub(super) server: Arc<Server>,
    pub(super) faults: Faults,
    disk: MemoryDisk,
    scratch: TempDir,
    heard: Arc<Mutex<Heard>>,
    links: Links,
    /// Unix time when the running boot began.
    booted: Duration,
    /// How long it ran before this run of the agent.
    ran: Duration,
    boots: u32,
    is_trusted: bool,
    /// By how much the wall clock jumped, in seconds.
    jump: Arc<AtomicU64>,
    pub(super) submitted: u64,
    /// Windows that an agent that was killed or stopped had neither accepted nor refused.
    lost: u64,
    life: Option<Life>,
}

/// Which links are up.
#[derive(Clone)]
struct Links {
    uplink: Arc<AtomicBool>,
    onboard: Arc<AtomicBool>,
}

/// One run of the agent, with its runtime.
struct Life {
    runtime: Runtime,
    run: Run,
}

struct Run {
    clock: Arc<LifeClock>,
    services: Arc<Services>,
    uplink: mpsc::Sender<LinkEvent>,
    onboard: mpsc::Sender<LinkEvent>,
    tasks: JoinHandle<mpsc::Receiver<LinkEvent>>,
}

struct LifeClock {
    started: Instant,
    booted: Duration,
    ran: Duration,
    jump: Arc<AtomicU64>,
    is_trusted: bool,
}

impl Clock for LifeClock {
    fn boot(&self) -> BootInstant {
        BootInstant(0).after(self.ran + self.started.elapsed())
    }

    fn unix(&self) -> Duration {
        let jump = Duration::from_secs(self.jump.load(Relaxed));
        self.booted + self.ran + self.started.elapsed() + jump
    }

    fn is_trusted(&self) -> bool {
        self.is_trusted
    }
}

fn message(topic: String, payload: impl Into<Bytes>) -> Message {
    Message {
        topic,
        payload: payload.into(),
        retained: false,
        content_type: None,
        response_topic: None,
        correlation_data: None,
        receipt: None,
    }
}

impl World {
    /// An agent that runs, with no task.
    pub(super) fn new(setting: Setting) -> Self {
        let faults = Faults::default();
        let key = VaultKey::derive(&RootSecret::from_bytes([1; 32]));
        let vault = LockedVault::in_memory().unlock(&key, Epoch(1)).unwrap();
        let up = || Arc::new(AtomicBool::new(true));
        let mut world = Self {
            setting,
            vault: Arc::new(vault),
            server: Arc::new(Server::new(faults.clone())),
            faults,
            disk: MemoryDisk::default(),
            scratch: tempfile::tempdir().unwrap(),
            heard: Arc::new(Mutex::new(Heard {
                is_unordered: setting.order == Order::NewestFirst,
                ..Heard::default()
            })),
            links: Links { uplink: up(), onboard: up() },
            booted: BEGIN,
            ran: Duration::ZERO,
            boots: 0,
            is_trusted: true,
            jump: Arc::default(),
            submitted: 0,
            lost: 0,
            life: None,
        };
        world.start();
        world
    }

    /// The same, with the task open and active.
    pub(super) fn active(setting: Setting) -> Self {
        let world = Self::new(setting);
        world.open();
        world.settle();
        assert_eq!(world.task().state, "active");
        world
    }

    fn start(&mut self) {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_time().start_paused(true).build().unwrap();
        let run = runtime.block_on(self.begin());
        self.life = Some(Life { runtime, run });
        self.settle();
    }

    async fn begin(&self) -> Run {
        let clock = Arc::new(LifeClock {
            started: Instant::now(),
            booted: self.booted,
            ran: self.ran,
            jump: Arc::clone(&self.jump),
            is_trusted: self.is_trusted,
        });
        let stop = CancellationToken::new();
        let (audit, _) = Audit::double();
        let (uplink_link, uplink_events, far) = link::pair();
        let uplink_far = far.events();
        tokio::spawn(self.serve_uplink(far, Arc::clone(&clock)));
        let Started { uplink, .. } = Uplink::start(
            identity(),
            Arc::new(Signer::of_the_robot()),
            Believed { servers: self.server.keys(), operators: None },
            clock.clone(),
            audit.clone(),
            (uplink_link, uplink_events),
            Watchdog::new(None, |_| {}).guard("uplink"),
        );
        let topics = Arc::new(Topics::new(PREFIX, &[]));
        let (onboard_link, onboard_events, far) = link::pair();
        let onboard_far = far.events();
        let (echo_link, echo_events, echo_far) = link::pair();
        tokio::spawn(self.hear(far, echo_far, topics.marker()));
        let (echoes, listener) = Echoes::on(echo_link, echo_events, &topics);
        let (link_state, state) = watch::channel(LinkState::connecting());
        let registry = SessionRegistry::default();
        let engines: Arc<dyn Engines> = Arc::new(TinyEngines {
            vault: Arc::clone(&self.vault),
            clock: clock.clone(),
            faults: self.faults.clone(),
        });
        let custodian: Arc<dyn Custodian> = Arc::new(NoTpm);
        let warm = WarmParts {
            wanted: self.setting.warm,
            directory: self.scratch.path().join("warm"),
            vault: Arc::clone(&self.vault),
            engines: Arc::clone(&engines),
            custodian: Arc::clone(&custodian),
            clock: clock.clone(),
            registry: registry.clone(),
            catalogue: uplink.catalogue(),
            declared: Vec::new(),
        };
        let onboard =
            Onboard::new(onboard_link, topics, state, echoes, stop.clone(), |_: ReleaseStep| {});
        let spool = self.spool();
        tokio::spawn(listener.run(onboard.clone(), spool.clone()));
        let services = Arc::new(Services {
            clock: clock.clone(),
            boot: self.boot(),
            vault: Arc::clone(&self.vault),
            spool,
            uplink,
            onboard,
            custodian,
            attester: None,
            audit,
            conditions: Conditions::default(),
            live: watch::channel(self.setting.live()).1,
            engines,
            warm: WarmPool::start(warm, stop.clone()).unwrap(),
            registry,
            board: StatusBoard::default(),
            stop,
        });
        uplink_far.send(LinkEvent::Up).await.unwrap();
        let catalogue = self.server.catalogue(clock.unix());
        uplink_far.send(LinkEvent::Message(catalogue)).await.unwrap();
        if !self.links.uplink.load(Relaxed) {
            uplink_far.send(down()).await.unwrap();
        }
        let is_up = self.links.onboard.load(Relaxed);
        onboard_far.send(if is_up { LinkEvent::Up } else { down() }).await.unwrap();
        if is_up && let Some(kept) = self.kept_state() {
            onboard_far.send(kept).await.unwrap();
        }
        let mut tasks = Tasks::new(Arc::clone(&services), link_state);
        tasks.resume().await.unwrap();
        let tasks = tokio::spawn(
            tasks.run(onboard_events, Watchdog::new(None, |_| {}).guard("onboard link")),
        );
        Run { clock, services, uplink: uplink_far, onboard: onboard_far, tasks }
    }

    /// The server's end of the uplink.
    fn serve_uplink(
        &self,
        mut far: FarEnd,
        clock: Arc<LifeClock>,
    ) -> impl Future<Output = ()> + use<> {
        let (server, up) = (Arc::clone(&self.server), Arc::clone(&self.links.uplink));
        let (vault, faults) = (Arc::clone(&self.vault), self.faults.clone());
        async move {
            let events = far.events();
            while let Some(publication) = far.next().await {
                if active(&records(&vault)) > 1 {
                    faults.add("two sessions of a task are active");
                }
                if !up.load(Relaxed) {
                    publication.refuse(PublishError::Down);
                    continue;
                }
                let outgoing = publication.accept();
                for answer in server.take(&outgoing, clock.unix()) {
                    // A router that has gone hears nothing.
                    let _ = events.send(LinkEvent::Message(answer)).await;
                }
            }
        }
    }

    /// The end of onboard software and its broker, which lets the agent hear what it published, in
    /// earlier runs too.
    fn hear(
        &self,
        mut far: FarEnd,
        echoes: FarEnd,
        marker: String,
    ) -> impl Future<Output = ()> + use<> {
        let (heard, up) = (Arc::clone(&self.heard), Arc::clone(&self.links.onboard));
        let faults = self.faults.clone();
        async move {
            let before = heard.lock().unwrap_or_else(PoisonError::into_inner).published.clone();
            echoes.tell(LinkEvent::Up).await;
            for (topic, payload) in before {
                echoes.tell(LinkEvent::Message(message(topic, payload))).await;
            }
            while let Some(publication) = far.next().await {
                if !up.load(Relaxed) {
                    publication.refuse(PublishError::Down);
                    continue;
                }
                let Outgoing { topic, payload, .. } = publication.outgoing().clone();
                if topic != marker {
                    let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
                    heard.take(publication.outgoing(), &faults);
                }
                echoes.tell(LinkEvent::Message(message(topic, payload))).await;
                publication.accept();
            }
        }
    }

    fn spool(&self) -> Spool {
        let limits = self.setting.spool_limits();
        Spool::in_memory(&self.disk, limits, &self.boot())
    }

    /// The task's state, which the onboard broker has retained.
    fn kept_state(&self) -> Option<LinkEvent> {
        let state = self.heard(|heard| heard.states.last().map(ToString::to_string))?;
        let kept = message(format!("{PREFIX}/task/{TASK}/state"), state);
        Some(LinkEvent::Message(Message { retained: true, ..kept }))
    }

    fn boot(&self) -> BootId {
        BootId::of(&self.boots.to_string())
    }

    fn life(&self) -> &Life {
        self.life.as_ref().unwrap()
    }

    fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.life().runtime.block_on(work)
    }

    // What happens.

    /// All that can happen without more time happens.
    pub(super) fn settle(&self) {
        self.wait(Duration::from_millis(1));
    }

    /// Time goes by.
    pub(super) fn wait(&self, time: Duration) {
        self.run(async move { tokio::time::sleep(time).await });
    }

    /// Tasks have so many turns and no time.
    pub(super) fn turns(&self, count: u8) {
        self.run(async {
            for _ in 0..count {
                tokio::task::yield_now().await;
            }
        });
    }

    fn say(&self, verb: &str, payload: String) {
        let mut message = message(format!("{PREFIX}/task/{TASK}/{verb}"), payload);
        message.response_topic = (verb == "input").then(|| REPLIES.to_owned());
        let event = LinkEvent::Message(message);
        let onboard = self.life().run.onboard.clone();
        self.run(async move { onboard.send(event).await.unwrap() });
    }

    pub(super) fn open(&self) {
        let payload = serde_json::json!({"model": CARD.id(), "scores": true});
        self.say("open", payload.to_string());
    }

    pub(super) fn close(&self) {
        self.say("close", String::new());
    }

    pub(super) fn rotate(&self) {
        self.say("rotate", String::new());
    }

    /// Hands over the next window.
    pub(super) fn submit(&mut self) {
        let number = u16::try_from(self.submitted).unwrap();
        self.submitted += 1;
        self.say("input", window(number));
    }

    fn tell(&self, messages: impl IntoIterator<Item = Message>) {
        let uplink = self.life().run.uplink.clone();
        if !self.links.uplink.load(Relaxed) {
            return;
        }
        let events: Vec<_> = messages.into_iter().map(LinkEvent::Message).collect();
        self.run(async move {
            for event in events {
                uplink.send(event).await.unwrap();
            }
        });
    }

    /// The server answers what it held.
    pub(super) fn release(&self) {
        self.server.hold(false);
        self.tell(self.server.release(self.unix()));
    }

    /// The server says again what it said.
    pub(super) fn repeat(&self) {
        self.tell(self.server.repeat(self.unix()));
    }

    /// The server answers the oldest job it holds with other keys.
    pub(super) fn spoil(&self) {
        self.tell(self.server.spoil(self.unix()));
    }

    /// The server refuses the oldest job it holds.
    pub(super) fn refuse(&self) {
        self.tell(self.server.refuse(self.unix()));
    }

    pub(super) fn set_uplink(&self, up: bool) {
        if self.links.uplink.swap(up, Relaxed) != up {
            let events = self.life().run.uplink.clone();
            let event = if up { LinkEvent::Up } else { down() };
            self.run(async move { events.send(event).await.unwrap() });
        }
    }

    pub(super) fn set_onboard(&self, up: bool) {
        if self.links.onboard.swap(up, Relaxed) != up {
            let events = self.life().run.onboard.clone();
            let event = if up { LinkEvent::Up } else { down() };
            let kept = self.kept_state().filter(|_| up);
            self.run(async move {
                for event in [event].into_iter().chain(kept) {
                    events.send(event).await.unwrap();
                }
            });
        }
    }

    /// Somebody writes to the files of keys made ahead.
    pub(super) fn spoil_warm_keys(&self) {
        for file in std::fs::read_dir(self.scratch.path().join("warm")).unwrap() {
            let path = file.unwrap().path();
            let mut keys = std::fs::read(&path).unwrap();
            keys[7] ^= 1;
            std::fs::write(&path, keys).unwrap();
        }
    }

    /// Every session is revoked; returns when their keys are gone.
    pub(super) fn revoke(&self) {
        let registry = &self.life().run.services.registry;
        let revoked = registry.revoke(|_, _| true);
        self.run(registry.left(&revoked));
        let kept = self.sessions();
        assert!(revoked.iter().all(|id| !kept.contains(id)), "a revoked session's seed is kept");
    }

    /// The wall clock jumps ahead, the server's too.
    pub(super) fn jump(&self, by: Duration) {
        self.jump.fetch_add(by.as_secs(), Relaxed);
    }

    fn unix(&self) -> Duration {
        let life = self.life();
        let _inside = life.runtime.enter();
        life.run.clock.unix()
    }

    /// SIGTERM, and the next start.
    pub(super) fn restart(&mut self) {
        let Life { runtime, run } = self.life.take().unwrap();
        let Run { clock, services, tasks, .. } = run;
        services.stop.cancel();
        drop(services);
        self.ran += runtime.block_on(async {
            drop(tasks.await.unwrap());
            clock.started.elapsed()
        });
        drop(runtime);
        self.come_back();
    }

    /// `kill -9`, and the next start.
    pub(super) fn kill(&mut self) {
        self.end_life();
        self.come_back();
    }

    /// Power off, a minute without, power on.
    pub(super) fn reboot(&mut self, is_trusted: bool) {
        self.end_life();
        self.booted += self.ran + Duration::from_mins(1);
        self.ran = Duration::ZERO;
        self.boots += 1;
        self.is_trusted = is_trusted;
        self.come_back();
    }

    fn end_life(&mut self) {
        let Life { runtime, run } = self.life.take().unwrap();
        self.ran += runtime.block_on(async { run.clock.started.elapsed() });
        drop(runtime);
    }

    fn come_back(&mut self) {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).newest.clear();
        // Whatever is neither told nor in the spool was in memory only.
        let aside = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let waiting = aside.block_on(async { self.waiting(&self.spool()).await });
        drop(aside);
        self.lost += self.unaccounted(&waiting);
        self.start();
    }

    // What can be seen.

    /// The sessions that the vault has.
    pub(super) fn records(&self) -> Vec<SessionRecord> {
        records(&self.vault)
    }

    pub(super) fn sessions(&self) -> Vec<SessionId> {
        self.records().into_iter().map(|record| record.id).collect()
    }

    /// The active session.
    pub(super) fn active_session(&self) -> SessionId {
        let mut records = self.records();
        records.retain(|record| record.facts.state.is_active());
        assert_eq!(records.len(), 1, "one session is active");
        records.remove(0).id
    }

    /// The task, as `status` shows it.
    pub(super) fn task(&self) -> TaskStatus {
        let board = self.life().run.services.board.snapshot();
        board.get(TASK).cloned().unwrap_or_default()
    }

    pub(super) fn heard<T>(&self, look: impl FnOnce(&Heard) -> T) -> T {
        look(&self.heard.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Answers to windows, by window.
    pub(super) fn answers(&self) -> Vec<i64> {
        self.heard(|heard| {
            let mut answers: Vec<i64> = heard
                .jobs
                .values()
                .filter_map(|end| match end {
                    End::Answer(window) => Some(*window),
                    End::Error(_) => None,
                })
                .collect();
            answers.sort_unstable();
            answers
        })
    }

    /// The codes of jobs that were not answered.
    pub(super) fn errors(&self) -> Vec<String> {
        self.heard(|heard| {
            let errors = heard.jobs.values().filter_map(|end| match end {
                End::Error(code) => Some(code.clone()),
                End::Answer(_) => None,
            });
            errors.collect()
        })
    }

    pub(super) fn warm_ready(&self) -> usize {
        self.life().run.services.warm.state().borrow().ready
    }

    /// Jobs in the spool that nobody was told the end of.
    async fn waiting(&self, spool: &Spool) -> BTreeSet<JobName> {
        let ended = self.vault.load_ended().unwrap();
        let ids = self.sessions().into_iter().chain(ended.into_iter().map(|(id, _)| id));
        let mut waiting = BTreeSet::new();
        for id in ids {
            let jobs = spool.outstanding(&id).await.unwrap();
            assert!(jobs.lost.is_empty());
            waiting.extend(jobs.jobs.into_iter().map(|job| (id.to_string(), job.number.0)));
        }
        self.heard(|heard| waiting.retain(|name| !heard.jobs.contains_key(name)));
        waiting
    }

    /// Windows of which nothing is known.
    fn unaccounted(&self, waiting: &BTreeSet<JobName>) -> u64 {
        let known = self.heard(|heard| heard.jobs.len() + heard.refused_windows + waiting.len());
        let known = u64::try_from(known).unwrap() + self.lost;
        assert!(known <= self.submitted, "{known} ends of {} windows", self.submitted);
        self.submitted - known
    }

    /// What must be true whenever nothing is under way.
    pub(super) fn check(&self) {
        self.settle();
        self.faults.check();
        let services = &self.life().run.services;
        let records = self.records();
        assert!(active(&records) <= 1, "two sessions are active");
        let taking = records.iter().filter(|it| it.facts.state.draining().is_none()).count();
        assert!(taking <= 2, "more than an active session and its successor take jobs");

        let on_disk: BTreeMap<String, &str> = records
            .iter()
            .map(|record| (record.id.to_string(), record.facts.state.word()))
            .collect();
        let shown = self.task().sessions;
        let in_memory: BTreeMap<String, &str> =
            shown.iter().map(|(id, session)| (id.clone(), session.state.as_str())).collect();
        assert_eq!(on_disk, in_memory, "the vault and the sessions differ");

        for record in &records {
            let issued = self.run(services.spool.issued(&record.id)).unwrap();
            assert!(issued <= self.setting.budget, "{issued} jobs exceed the budget");
        }
        let waiting = self.run(self.waiting(&services.spool));
        let unaccounted = self.unaccounted(&waiting);
        // Without a session windows wait with the task.
        // Where windows are held, some may be.
        if self.links.onboard.load(Relaxed)
            && self.task().session.is_some()
            && !self.setting.policy().holds()
        {
            assert_eq!(unaccounted, 0, "windows are lost; {waiting:?} wait");
        }
    }

    /// Every accepted job has ended, and nothing of any session is left.
    pub(super) fn check_end(&self) {
        self.check();
        assert!(self.records().is_empty(), "sessions are left");
        assert!(self.vault.load_ended().unwrap().is_empty(), "ended sessions are left");
        let ended = self.heard(|heard| heard.states.last().map(|it| it["state"].clone()));
        assert!(ended.is_none_or(|state| state == "ended"), "the task says otherwise");
        let known = self.heard(|heard| heard.jobs.len());
        assert_eq!(self.unaccounted(&BTreeSet::new()), 0, "{known} jobs have ended");
    }
}

fn down() -> LinkEvent {
    LinkEvent::Down(LinkError::Broken("by the test".to_owned()))
}

fn records(vault: &Vault) -> Vec<SessionRecord> {
    vault.load().unwrap().into_iter().map(Result::unwrap).collect()
}

fn active(records: &[SessionRecord]) -> usize {
    records.iter().filter(|record| record.facts.state.is_active()).count()
}

impl Heard {
    fn take(&mut self, outgoing: &Outgoing, faults: &Faults) {
        let body: Value = serde_json::from_slice(&outgoing.payload).unwrap();
        if outgoing.topic == REPLIES {
            self.refused_windows += usize::from(body["job"].is_null());
            return;
        }
        let Some(leaf) = outgoing.topic.strip_prefix(&format!("{PREFIX}/task/{TASK}/")) else {
            return;
        };
        let end = match leaf {
            "state" => return self.states.push(body),
            "result" => End::Answer(body["scores"][0].as_i64().unwrap()),
            _ => End::Error(body["code"].as_str().unwrap().to_owned()),
        };
        let (Some(session), Some(job)) = (body["session"].as_str(), body["job"].as_u64()) else {
            let End::Error(code) = end else { return faults.add("an answer to no job") };
            return self.refusals.push(code);
        };
        let newest = self.newest.entry(session.to_owned()).or_default();
        if *newest >= job && !self.is_unordered {
            faults.add(format!("job {job} of {session} ends after job {newest}"));
        }
        *newest = job;
        let name = (session.to_owned(), job);
        self.published.push((outgoing.topic.clone(), outgoing.payload.clone()));
        if let End::Answer(window) = end
            && self.jobs.iter().any(|(other, it)| *it == End::Answer(window) && *other != name)
        {
            faults.add(format!("window {window} is answered twice"));
        }
        if self.jobs.insert(name.clone(), end).is_some() {
            faults.add(format!("{name:?} ends twice"));
        }
    }
}

/// Another source of randomness than the operating system's; nothing else of it is used here.
struct NoTpm;

impl Custodian for NoTpm {
    fn kind(&self) -> CustodianKind {
        CustodianKind::Env
    }

    fn describe(&self) -> Result<String, CustodyError> {
        Ok("nothing".to_owned())
    }

    fn random(&self) -> Result<Box<Zeroizing<[u8; 32]>>, CustodyError> {
        Ok(Box::default())
    }

    fn seal(&self, _: Epoch, _: &RootSecret, _: Option<&[u8]>) -> Result<Vec<u8>, CustodyError> {
        unreachable!("the root secret is not sealed here")
    }

    fn unseal(&self, _: Epoch, _: &[u8]) -> Result<RootSecret, CustodyError> {
        unreachable!("the root secret is not sealed here")
    }

    fn retire(&self, _: Epoch, _: &[u8]) -> Result<(), CustodyError> {
        unreachable!("the root secret is not sealed here")
    }

    fn shreds(&self) -> bool {
        false
    }
}
