//! The compute server with its configuration: `moai-server`, or the TenSEAL server for CKKS.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::broker::SERVER;
use crate::mqtt::Client;
use crate::onboard::SLOW;
use crate::pki::Pki;
use crate::process::{Finished, Launch, Process, STEP, binary};
use crate::reference::Scheme;
use crate::settings::{Settings, quoted};
use crate::tenseal;

/// The filter under which workers say that they are up.
pub const WORKER_STATUS: &str = "moai/v1/workers/+/status";

/// A compute server.
#[derive(Debug)]
pub struct Compute {
    scheme: Scheme,
    directory: PathBuf,
    settings: Settings,
    process: Option<Process>,
    worker: Option<String>,
    run_arguments: Vec<String>,
}

impl Compute {
    /// Writes the configuration; nothing runs yet.
    ///
    /// # Errors
    /// The configuration cannot be written, or a snippet is not TOML.
    pub fn new(
        scheme: Scheme,
        directory: &Path,
        broker_port: u16,
        pki: &Pki,
        models: &Path,
        server_toml: &[String],
    ) -> Result<Self> {
        Self::named(scheme, SERVER, directory, broker_port, pki, models, server_toml)
    }

    /// The same for a server that the broker knows under this name.
    ///
    /// # Errors
    /// The configuration cannot be written, or a snippet is not TOML.
    pub fn named(
        scheme: Scheme,
        name: &str,
        directory: &Path,
        broker_port: u16,
        pki: &Pki,
        models: &Path,
        server_toml: &[String],
    ) -> Result<Self> {
        fs::create_dir_all(directory)?;
        let credentials = pki.client(name)?;
        let mut settings = Settings::default();
        settings.overlay(&format!(
            "worker_group = \"test-workers\"\n\
             models_directory = {models}\n\
             signing_key = {signing_key}\n\
             [tenants.acme]\n[tenants.globex]\n\
             [audit]\npath = {audit}\n\
             [broker]\nhost = \"localhost\"\nport = {broker_port}\n\
             ca = {ca}\ncertificate = {certificate}\nkey = {key}\n\
             [log]\nlevel = {level:?}\n",
            models = quoted(models),
            signing_key = quoted(&pki.signing_key()),
            audit = quoted(&directory.join("audit.jsonl")),
            ca = quoted(&credentials.ca),
            certificate = quoted(&credentials.certificate),
            key = quoted(&credentials.key),
            level = if scheme == Scheme::Tfhe { "trace" } else { "debug" },
        ))?;
        // The TenSEAL server keeps its sessions in memory.
        if scheme == Scheme::Tfhe && !server_toml.iter().any(|snippet| snippet.contains("[store]"))
        {
            let store = quoted(&directory.join("store"));
            settings.overlay(&format!("[store]\npath = {store}\n"))?;
        }
        for snippet in server_toml {
            settings.overlay(snippet)?;
        }
        let compute = Self {
            scheme,
            directory: directory.to_owned(),
            settings,
            process: None,
            worker: None,
            run_arguments: Vec::new(),
        };
        compute.settings.write(&compute.config_file())?;
        Ok(compute)
    }

    /// The configuration file.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.directory.join("server.toml")
    }

    /// Where sessions are kept, unless the configuration was changed.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.directory.join("store")
    }

    /// The audit log, unless the configuration was changed.
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

    /// Serves only robots that are enrolled in this directory and attest, from the next start on.
    ///
    /// # Errors
    /// The configuration cannot be written.
    pub fn require_attestation(&mut self, enrolments: &Path) -> Result<()> {
        self.run_arguments = vec!["--require-attestation".to_owned()];
        self.configure(&format!("[attestation]\nenrolments = {}\n", quoted(enrolments)))
    }

    /// Runs a subcommand such as `["config", "check"]` to its end.
    ///
    /// # Errors
    /// It cannot be started or takes longer than [`STEP`]; a failing exit code is no error here.
    pub async fn command(&self, arguments: &[&str]) -> Result<Finished> {
        self.launch("command", arguments)?.run(STEP).await
    }

    /// Starts the server and waits until a worker says on the broker that it is up.
    ///
    /// `watcher` must be subscribed to [`WORKER_STATUS`].
    ///
    /// # Errors
    /// The server ends, or is not up within [`SLOW`].
    pub async fn start(&mut self, watcher: &Client) -> Result<()> {
        watcher.skip(WORKER_STATUS);
        let arguments: Vec<&str> =
            ["run"].into_iter().chain(self.run_arguments.iter().map(String::as_str)).collect();
        let process = self.process.insert(self.launch("server", &arguments)?.spawn()?);
        watcher.show_on_failure(process.log());
        let announced = watcher.wait_for(WORKER_STATUS, "worker that is up", SLOW, |message| {
            message.json().is_ok_and(|status| status["up"] == true)
        });
        let status = tokio::select! {
            status = announced => status?.json()?,
            ended = process.wait(SLOW) => {
                bail!("the server ended with {}\n{}", ended?, process.log().tail())
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
        self.worker.as_deref().context("the server has not been started")
    }

    /// The process.
    ///
    /// # Errors
    /// The server is stopped.
    pub fn process(&self) -> Result<&Process> {
        self.process.as_ref().context("the server is stopped")
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

    /// `kill -9`.
    ///
    /// # Errors
    /// The kernel refuses the signal.
    pub async fn kill(&mut self) -> Result<()> {
        if let Some(process) = self.process.take() {
            process.kill().await?;
        }
        Ok(())
    }

    fn launch(&self, name: &str, arguments: &[&str]) -> Result<Launch> {
        let launch = match self.scheme {
            Scheme::Tfhe => {
                Launch::new(name, &binary("moai-server")?, &self.directory.join("logs"))
            }
            Scheme::Ckks => tenseal::module(name, "moai_tenseal", &self.directory)?,
        };
        Ok(launch.args(["--config".as_ref(), self.config_file().as_os_str()]).args(arguments))
    }
}
