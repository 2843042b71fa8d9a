//! One robot: its TPM, its own broker, its onboard software, and the agent under test.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::broker::Broker;
use crate::log::Log;
use crate::onboard::{Onboard, PREFIX, SLOW};
use crate::pki::{Authority, Credentials};
use crate::process::{Finished, Launch, Process, STEP, binary};
use crate::settings::{Settings, quoted};
use crate::swtpm::Swtpm;

/// What a robot is made from.
#[derive(Debug, Clone)]
pub struct Blueprint {
    /// `tenant.robot`, as its certificate has it.
    pub identity: String,
    /// Where it keeps everything.
    pub directory: PathBuf,
    /// The port of the uplink's broker, or of a proxy before it.
    pub uplink_port: u16,
    /// Where its identity key is, and who certifies it.
    pub identity_key: IdentityKey,
    /// The file with the keys of the servers it believes.
    pub server_key: PathBuf,
    /// Snippets of configuration, laid over the harness's one by one.
    pub agent_toml: Vec<String>,
    /// Lines of the configuration of its own broker.
    pub broker_options: String,
}

/// Where a robot's identity key is.
#[derive(Debug, Clone)]
pub enum IdentityKey {
    /// In its TPM, certified by this CA when the robot is provisioned.
    Tpm(Authority),
    /// In a file, as only development permits.
    Software(Credentials),
}

/// A robot.
#[derive(Debug)]
pub struct Robot {
    /// The agent under test.
    pub agent: Agent,
    /// The onboard software.
    pub onboard: Onboard,
    /// The robot's own broker.
    pub broker: Broker,
    /// The TPM.
    pub tpm: Swtpm,
}

impl Robot {
    /// Builds a robot: TPM and broker run, the agent is configured but has never run.
    ///
    /// # Errors
    /// A process does not come up.
    pub async fn build(blueprint: Blueprint) -> Result<Self> {
        let Blueprint {
            identity,
            directory,
            uplink_port,
            identity_key,
            server_key,
            agent_toml,
            broker_options,
        } = blueprint;
        let tpm = Swtpm::start(&directory.join("tpm")).await?;
        let broker = Broker::onboard(&directory.join("broker"), &broker_options).await?;
        let onboard = Onboard::connect(broker.port()).await?;
        let agent = directory.join("agent");
        let mut settings = Settings::default();
        settings.overlay(&format!(
            "identity = {identity:?}\n\
             state_directory = {state}\n\
             control_socket = {socket}\n\
             [tpm]\ntcti = {tcti:?}\n\
             [onboard]\nhost = \"127.0.0.1\"\nport = {onboard_port}\nprefix = {PREFIX:?}\n\
             [uplink]\nhost = \"localhost\"\nport = {uplink_port}\n\
             certificate = {certificate}\nserver_key = {server_key}\n\
             [sessions]\nwarm = 0\n\
             [log]\nlevel = \"trace,tss_esapi=trace\"\n",
            state = quoted(&agent.join("state")),
            socket = quoted(&agent.join("control.sock")),
            tcti = tpm.tcti(),
            onboard_port = broker.port(),
            certificate = quoted(&agent.join("state/robot.pem")),
            server_key = quoted(&server_key),
        ))?;
        settings.overlay(&identity_key.toml())?;
        for snippet in &agent_toml {
            settings.overlay(snippet)?;
        }
        let agent = Agent::new(&agent, settings, &identity_key)?;
        Ok(Self { agent, onboard, broker, tpm })
    }

    /// Starts the agent and waits until it says that its health is "up".
    ///
    /// # Errors
    /// It ends, or is not up within [`SLOW`].
    pub async fn start_agent(&mut self) -> Result<()> {
        self.onboard.forget_health();
        let process = self.agent.spawn()?;
        self.onboard.client.show_on_failure(process.log());
        tokio::select! {
            up = self.onboard.health("up") => up.map(drop),
            ended = process.wait(SLOW) => {
                bail!("the agent ended with {}\n{}", ended?, process.log().tail())
            }
        }
    }

    /// SIGTERM, then a new start.
    ///
    /// # Errors
    /// The agent does not end, or does not come up again.
    pub async fn restart_agent(&mut self) -> Result<()> {
        self.agent.stop().await?;
        self.start_agent().await
    }
}

impl IdentityKey {
    /// What the agent's configuration says of it.
    fn toml(&self) -> String {
        match self {
            Self::Tpm(authority) => format!("[uplink]\nca = {}\n", quoted(&authority.certificate)),
            Self::Software(credentials) => format!(
                "development = true\n[uplink]\nca = {}\ncertificate = {}\nkey = {}\n",
                quoted(&credentials.ca),
                quoted(&credentials.certificate),
                quoted(&credentials.key),
            ),
        }
    }
}

/// `moai-agent` with its configuration and state.
#[derive(Debug)]
pub struct Agent {
    directory: PathBuf,
    settings: Settings,
    /// What `provision` is told.
    provisioning: Vec<String>,
    program: &'static str,
    /// In place of `program`, wherever it lies.
    built_elsewhere: Option<PathBuf>,
    environment: Vec<(String, String)>,
    process: Option<Process>,
}

impl Agent {
    fn new(directory: &Path, settings: Settings, identity_key: &IdentityKey) -> Result<Self> {
        fs::create_dir_all(directory.join("state"))?;
        let provisioning = match identity_key {
            IdentityKey::Tpm(Authority { certificate, key }) => {
                let [certificate, key] = [certificate, key].map(|path| path.display().to_string());
                vec!["--ca".to_owned(), certificate, "--ca-key".to_owned(), key]
            }
            IdentityKey::Software(_) => Vec::new(),
        };
        let agent = Self {
            directory: directory.to_owned(),
            settings,
            provisioning,
            program: "moai-agent",
            built_elsewhere: None,
            environment: Vec::new(),
            process: None,
        };
        agent.settings.write(&agent.config_file())?;
        Ok(agent)
    }

    /// The configuration file.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.directory.join("agent.toml")
    }

    /// Where the agent keeps its state.
    #[must_use]
    pub fn state_directory(&self) -> PathBuf {
        self.directory.join("state")
    }

    /// Changes the configuration; it counts from the next start or reload on.
    ///
    /// # Errors
    /// The snippet is not TOML, or the file cannot be written.
    pub fn configure(&mut self, toml: &str) -> Result<()> {
        self.settings.overlay(toml)?;
        self.settings.write(&self.config_file())
    }

    /// Takes a key, or a whole section, out of the configuration.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn configure_without(&mut self, key: &str) -> Result<()> {
        self.settings.remove(key);
        self.settings.write(&self.config_file())
    }

    /// Sets an environment variable of the agent; it counts from the next start on.
    pub fn set_env(&mut self, key: &str, value: &str) {
        self.environment.push((key.to_owned(), value.to_owned()));
    }

    /// Has `moai-agent-double` do everything from now on, with these environment variables; the
    /// program says what it understands.
    pub fn use_double(&mut self, environment: &[(&str, &str)]) {
        self.program = "moai-agent-double";
        let owned = environment.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        self.environment = owned.collect();
    }

    /// Has another build of the agent do everything from now on.
    pub fn use_program(&mut self, path: &Path) {
        self.built_elsewhere = Some(path.to_owned());
    }

    /// Has the agent itself do everything again.
    pub fn use_real(&mut self) {
        self.program = "moai-agent";
        self.environment.clear();
    }

    /// Runs a subcommand such as `["status"]` or `["config", "check"]` to its end.
    ///
    /// # Errors
    /// It cannot be started or takes longer than [`STEP`]; a failing exit code is no error here.
    pub async fn command(&self, arguments: &[&str]) -> Result<Finished> {
        self.launch(arguments.first().copied().unwrap_or("agent"), arguments)?.run(STEP).await
    }

    /// The same, with `input` on standard input.
    ///
    /// # Errors
    /// It cannot be started or takes longer than [`STEP`].
    pub async fn command_with_input(&self, arguments: &[&str], input: &str) -> Result<Finished> {
        let path = self.directory.join("stdin");
        fs::write(&path, input)?;
        let name = arguments.first().copied().unwrap_or("agent");
        self.launch(name, arguments)?.stdin(&path).run(STEP).await
    }

    /// Makes the root secret and the identity key, and has the key certified.
    ///
    /// # Errors
    /// `moai-agent provision` fails.
    pub async fn provision(&self) -> Result<Log> {
        let mut arguments = vec!["provision"];
        arguments.extend(self.provisioning.iter().map(String::as_str));
        self.command(&arguments).await?.success()
    }

    /// Starts `moai-agent run` without waiting for anything.
    ///
    /// # Errors
    /// It cannot be started, or one runs already.
    pub fn spawn(&mut self) -> Result<&Process> {
        if self.process.as_ref().is_some_and(|process| process.exit().is_none()) {
            bail!("the agent runs already");
        }
        let process = self.launch("run", &["run"])?.spawn()?;
        Ok(self.process.insert(process))
    }

    /// The process of the last [`Agent::spawn`].
    ///
    /// # Errors
    /// There is none.
    pub fn process(&self) -> Result<&Process> {
        self.process.as_ref().context("the agent has not been started")
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

    fn launch(&self, what: &str, arguments: &[&str]) -> Result<Launch> {
        let name = format!("agent-{what}");
        let program = self.built_elsewhere.clone().map_or_else(|| binary(self.program), Ok)?;
        let launch = Launch::new(&name, &program, &self.directory.join("logs"))
            .args(["--config".as_ref(), self.config_file().as_os_str()])
            .args(arguments);
        let environment = self.environment.iter();
        Ok(environment.fold(launch, |launch, (key, value)| launch.env(key, value)))
    }
}
