//! Changes of the configuration while the agent runs: on SIGHUP, and when the control socket asks.
//!
//! Invariants:
//! - a configuration with problems changes nothing; it is in the log and in the agent's health until a
//!   good one is read;
//! - no session ends: sessions of tasks that are declared no more, or with another model, drain;
//! - what cannot change while the agent runs is named, each time, until the agent has restarted;
//! - one reload at a time; systemd hears of it when it begins and when it is over.

use std::path::PathBuf;
use std::sync::Arc;

use sd_notify::NotifyState;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::Signal;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::cli::{check_files, exit};
use crate::config::Config;
use crate::control::Refused;
use crate::live::LiveSettings;
use crate::log::LogLevel;
use crate::services::{Services, off_thread};
use crate::startup::notify;

const QUEUE_LEN: usize = 8;
/// What suffers from a configuration that is not usable.
const PART: &str = "configuration";

/// Where the configuration comes from, and the part of it that counts before anything else does.
pub struct Source {
    /// The file.
    pub path: PathBuf,
    /// The log that it gave a level.
    pub log: LogLevel,
}

/// What a reload has changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// Keys whose values count from now on.
    pub changed: Vec<String>,
    /// Keys whose values count from the agent's next start on.
    pub restart: Vec<String>,
}

type Reply = oneshot::Sender<Result<Reloaded, Refused>>;

/// A handle to who reads the configuration again.
#[derive(Clone)]
pub struct Reloads {
    requests: mpsc::Sender<Reply>,
    restart: watch::Receiver<Vec<String>>,
}

impl Reloads {
    /// Reads the configuration again.
    ///
    /// # Errors
    /// It has problems, and nothing has changed; or the agent is stopping.
    pub async fn reload(&self) -> Result<Reloaded, Refused> {
        let stopping = || Refused { message: "the agent is stopping".to_owned(), exit_code: 75 };
        let (reply, reloaded) = oneshot::channel();
        self.requests.send(reply).await.map_err(|_| stopping())?;
        reloaded.await.map_err(|_| stopping())?
    }

    /// Keys that wait for the agent's next start.
    #[must_use]
    pub fn restart(&self) -> Vec<String> {
        self.restart.borrow().clone()
    }
}

/// Reads the configuration again.
pub struct Reloader {
    source: Source,
    started: Arc<Config>,
    live: watch::Sender<LiveSettings>,
    services: Arc<Services>,
    ready: watch::Receiver<bool>,
}

impl Reloader {
    /// For an agent that has started with `started`. `live` is where its parts hear what counts,
    /// `ready` whether systemd has been told that it is ready.
    #[must_use]
    pub fn new(
        source: Source,
        started: &Arc<Config>,
        live: watch::Sender<LiveSettings>,
        services: &Arc<Services>,
        ready: watch::Receiver<bool>,
    ) -> Self {
        Self { source, started: Arc::clone(started), live, services: Arc::clone(services), ready }
    }

    /// Serves until the agent stops.
    #[must_use]
    pub fn start(self, hangups: Signal) -> Reloads {
        let (requests, incoming) = mpsc::channel(QUEUE_LEN);
        let (told, restart) = watch::channel(Vec::new());
        let stop = self.services.stop.clone();
        tokio::spawn(self.run(hangups, incoming, told, stop));
        Reloads { requests, restart }
    }

    async fn run(
        self,
        mut hangups: Signal,
        mut requests: mpsc::Receiver<Reply>,
        restart: watch::Sender<Vec<String>>,
        stop: CancellationToken,
    ) {
        let mut in_force = Arc::clone(&self.started);
        loop {
            let reply = tokio::select! {
                () = stop.cancelled() => return,
                Some(()) = hangups.recv() => None,
                Some(reply) = requests.recv() => Some(reply),
            };
            let is_ready = *self.ready.borrow();
            if is_ready && let Ok(now) = NotifyState::monotonic_usec_now() {
                notify(&[NotifyState::Reloading, now]);
            }
            let reloaded = self.reload(&mut in_force).await;
            if let Ok(reloaded) = &reloaded {
                restart.send_replace(reloaded.restart.clone());
            }
            if is_ready {
                notify(&[NotifyState::Ready]);
            }
            // Whoever has lost patience needs no answer.
            drop(reply.map(|reply| reply.send(reloaded)));
        }
    }

    async fn reload(&self, in_force: &mut Arc<Config>) -> Result<Reloaded, Refused> {
        let conditions = &self.services.conditions;
        match self.follow(in_force).await {
            Ok(reloaded) => {
                conditions.set(PART, None);
                tracing::info!(changed = reloaded.changed.join(", "), "configuration read again");
                if !reloaded.restart.is_empty() {
                    tracing::warn!("needs a restart: {}", reloaded.restart.join(", "));
                }
                Ok(reloaded)
            }
            Err(error) => {
                let (message, exit_code) = (exit::message(&error), exit::code(&error));
                let line = message.lines().map(str::trim).collect::<Vec<_>>().join(" ");
                tracing::error!("the configuration stays as it was: {line}");
                conditions.set(PART, Some(format!("it stays as it was: {line}")));
                Err(Refused { message, exit_code })
            }
        }
    }

    async fn follow(&self, in_force: &mut Arc<Config>) -> anyhow::Result<Reloaded> {
        let path = self.source.path.clone();
        let next = off_thread(move || {
            let config = Config::load(&path)?;
            check_files(&config)?;
            anyhow::Ok(config)
        })
        .await?;
        if next.log.level != in_force.log.level {
            self.source.log.set(&next.log.level)?;
        }
        let named = |keys: Vec<&str>| keys.into_iter().map(str::to_owned).collect();
        let reloaded = Reloaded {
            changed: named(in_force.changes(&next).live),
            restart: named(self.started.changes(&next).restart),
        };
        let settings = LiveSettings::of(&next);
        let Services { spool, onboard, warm, .. } = &*self.services;
        spool.limit(settings.spool.max_bytes);
        let models = settings.tasks.iter().map(|task| task.model.clone()).collect();
        warm.want(settings.sessions.warm, models).await;
        // Before a task can answer on another topic.
        onboard.topics().redeclare(&settings.tasks);
        self.live.send_if_modified(|live| {
            let is_other = *live != settings;
            *live = settings;
            is_other
        });
        *in_force = Arc::new(next);
        Ok(reloaded)
    }
}
