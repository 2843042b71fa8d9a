//! The compute server for CKKS: `server/tenseal`, with its configuration.
//!
//! Invariant: it runs from the environment that `cargo xtask setup` makes in the target directory,
//! and writes nothing into the source tree.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::broker::SERVER;
use crate::mqtt::Client;
use crate::onboard::SLOW;
use crate::pki::Pki;
use crate::process::{Finished, Launch, Process, STEP};
use crate::python::interpreter;
use crate::settings::{Settings, quoted};

/// A CKKS server.
#[derive(Debug)]
pub struct Tenseal {
    directory: PathBuf,
    settings: Settings,
    process: Option<Process>,
    worker: Option<String>,
}

impl Tenseal {
    /// Writes the configuration; nothing runs yet. The broker knows it as [`SERVER`].
    ///
    /// # Errors
    /// The configuration cannot be written.
    pub fn new(directory: &Path, broker_port: u16, pki: &Pki) -> Result<Self> {
        std::fs::create_dir_all(directory)?;
        let credentials = pki.client(SERVER)?;
        let mut settings = Settings::default();
        settings.overlay(&format!(
            "worker_group = \"test-workers\"\n\
             models_directory = {models}\n\
             signing_key = {signing_key}\n\
             [tenants.acme]\n\
             [audit]\npath = {audit}\n\
             [broker]\nhost = \"localhost\"\nport = {broker_port}\n\
             ca = {ca}\ncertificate = {certificate}\nkey = {key}\n\
             [log]\nlevel = \"debug\"\n",
            models = quoted(&source().join("models")),
            signing_key = quoted(&pki.signing_key()),
            audit = quoted(&directory.join("audit.jsonl")),
            ca = quoted(&credentials.ca),
            certificate = quoted(&credentials.certificate),
            key = quoted(&credentials.key),
        ))?;
        let tenseal =
            Self { directory: directory.to_owned(), settings, process: None, worker: None };
        tenseal.settings.write(&tenseal.config_file())?;
        Ok(tenseal)
    }

    /// The audit log.
    #[must_use]
    pub fn audit_log(&self) -> PathBuf {
        self.directory.join("audit.jsonl")
    }

    /// Changes the configuration; it counts from the next start on.
    ///
    /// # Errors
    /// The snippet is not TOML, or the file cannot be written.
    pub fn configure(&mut self, toml: &str) -> Result<()> {
        self.settings.overlay(toml)?;
        self.settings.write(&self.config_file())
    }

    /// Starts the server and waits until it says on the broker that it is up.
    ///
    /// `watcher` must be subscribed to [`crate::compute::WORKER_STATUS`].
    ///
    /// # Errors
    /// The server ends, or is not up within [`SLOW`].
    pub async fn start(&mut self, watcher: &Client) -> Result<()> {
        let filter = crate::compute::WORKER_STATUS;
        watcher.skip(filter);
        let launch = module("tenseal", "moai_tenseal", &self.directory)?;
        let launch = launch.args(["--config"]).args([self.config_file()]).args(["run"]);
        let process = self.process.insert(launch.spawn()?);
        watcher.show_on_failure(process.log());
        let announced = watcher.wait_for(filter, "CKKS server that is up", SLOW, |message| {
            message.json().is_ok_and(|status| status["up"] == true)
        });
        let status = tokio::select! {
            status = announced => status?.json()?,
            ended = process.wait(SLOW) => {
                bail!("the CKKS server ended with {}\n{}", ended?, process.log().tail())
            }
        };
        let worker = status["worker"].as_str().context("the worker status names no worker")?;
        self.worker = Some(worker.to_owned());
        Ok(())
    }

    /// The id of the worker that announced itself last.
    ///
    /// # Errors
    /// None has.
    pub fn worker(&self) -> Result<&str> {
        self.worker.as_deref().context("the CKKS server has not been started")
    }

    /// The process.
    ///
    /// # Errors
    /// The server is stopped.
    pub fn process(&self) -> Result<&Process> {
        self.process.as_ref().context("the CKKS server is stopped")
    }

    /// SIGTERM, and waits for the end.
    ///
    /// # Errors
    /// It does not end within [`STEP`].
    pub async fn stop(&mut self) -> Result<()> {
        if let Some(process) = self.process.take() {
            process.terminate(STEP).await?;
        }
        Ok(())
    }

    fn config_file(&self) -> PathBuf {
        self.directory.join("tenseal.toml")
    }
}

/// Where the server's source lies.
fn source() -> PathBuf {
    crate::repository().join("server/tenseal")
}

/// A module of the server or of its tests, about to run; logs go to `directory`.
fn module(name: &str, module: &str, directory: &Path) -> Result<Launch> {
    Ok(Launch::new(name, &interpreter("tenseal")?, &directory.join("logs"))
        .env("PYTHONPATH", source())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .args(["-m", module]))
}

/// Runs a module with arguments to its end.
///
/// # Errors
/// It cannot be started or takes longer than [`SLOW`]; a failing exit code is no error here.
pub async fn run(directory: &Path, name: &str, arguments: &[&str]) -> Result<Finished> {
    module(name, name, directory)?.args(arguments).run(SLOW).await
}
