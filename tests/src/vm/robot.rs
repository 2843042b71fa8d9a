//! What happens to the robot, step by step.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use p256::SecretKey;
use p256::pkcs8::{EncodePrivateKey as _, EncodePublicKey as _, LineEnding};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::machine::{Accelerator, Machine, Software};
use super::search::{Kept, Moment, search};
use crate::broker::{Acl, Broker, OPERATOR, SERVER};
use crate::compute::{Compute, WORKER_STATUS};
use crate::mqtt::{Address, Client};
use crate::onboard::Onboard;
use crate::pki::{Pki, REMOTE_HOST};
use crate::process::{Launch, STEP, binary};
use crate::recordings::{self, Trial};
use crate::reference::{Reference, Scheme};
use crate::world::IDENTITY;

const TASK: &str = "arm";
const MODEL: &str = "grasp";
/// What the root secret is bound to: Secure Boot, and what the kernel was started with.
const PCRS: &str = "sha256:7,9";
/// The registers by their names in messages.
const CHANGED_PCR: &str = "PCR 9";
/// Whoever cannot unseal ends with this (`moai-agent --help`).
const NO_PERMISSION: &str = "77";
/// How long anything may take on an emulated processor, keys and their upload included.
const EMULATED: Duration = Duration::from_mins(5);
const CONFIG: &str = "/etc/moai-agent/agent.toml";
const AS_AGENT: &str = "runuser -u moai-agent -- moai-agent";

/// The robot, and what is outside of it.
pub(super) struct Robot {
    machine: Machine,
    onboard: Option<Onboard>,
    trials: Vec<Trial>,
    reference: Reference,
    answered: usize,
    /// What was shown last.
    recovery_code: String,
    /// What the search of the disk opens.
    moments: Vec<Moment>,
    _compute: Compute,
    _operator: Client,
    broker: Broker,
    pki: Pki,
    policy_key: PathBuf,
    scratch: TempDir,
}

impl Robot {
    /// Starts what is outside of the robot.
    pub(super) async fn new(software: Software, accelerator: Accelerator) -> Result<Self> {
        let scratch = tempfile::Builder::new().prefix("moai-vm-").tempdir()?;
        let directory = scratch.path();
        let pki = Pki::new(&directory.join("pki"))?;
        let acl = Acl { robots: vec![IDENTITY.to_owned()], ..Acl::default() };
        let broker = Broker::uplink(&directory.join("uplink"), &pki, &acl, false).await?;
        let operator = Client::connect(Address {
            port: broker.port(),
            credentials: Some(pki.client(OPERATOR)?),
            client_id: OPERATOR.to_owned(),
        });
        let operator = operator.await?;
        operator.subscribe(WORKER_STATUS).await?;
        let models = Scheme::Tfhe.models();
        let place = directory.join(SERVER);
        let quiet = ["[log]\nlevel = \"info\"\n".to_owned()];
        let mut compute = Compute::new(Scheme::Tfhe, &place, broker.port(), &pki, &models, &quiet)?;
        compute.start(&operator).await?;
        let policy_key = directory.join("policy.key");
        let key = SecretKey::from_slice(&[7; 32])?;
        fs::write(&policy_key, key.to_pkcs8_pem(LineEnding::LF)?.as_bytes())?;
        fs::write(
            policy_key.with_extension("pub"),
            key.public_key().to_public_key_pem(LineEnding::LF)?,
        )?;
        Ok(Self {
            machine: Machine::new(&directory.join("machine"), software, accelerator)?,
            onboard: None,
            trials: recordings::distinct(recordings::load(&recordings::directory())?),
            reference: Reference::load(Scheme::Tfhe, MODEL)?,
            answered: 0,
            recovery_code: String::new(),
            moments: Vec::new(),
            _compute: compute,
            _operator: operator,
            broker,
            pki,
            policy_key,
            scratch,
        })
    }

    /// A robot that nobody has provisioned boots without a failed unit.
    pub(super) async fn first_boot(&mut self) -> Result<String> {
        self.machine.switch_on("first").await?;
        self.all_is_well().await?;
        let state =
            self.guest("systemctl show -P ActiveState -P ConditionResult moai-agent").await?;
        ensure!(state.split_whitespace().eq(["inactive", "no"]), "the service is {state}");
        let device = self.guest("stat -c '%G %a' /dev/tpmrm0").await?;
        ensure!(device.trim() == "tss 660", "/dev/tpmrm0 belongs to {device}");
        let onboard = async {
            loop {
                if let Ok(onboard) = Onboard::connect(self.machine.onboard_port()).await {
                    return onboard;
                }
                // QEMU takes connections for a broker that is not there yet.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let onboard = tokio::time::timeout(EMULATED, onboard).await;
        self.onboard = Some(onboard.context("the robot has no broker")?);
        let kernel = self.guest("uname -r").await?;
        Ok(format!("Linux {} by {:?}", kernel.trim(), self.machine.accelerator()))
    }

    /// Configuration and keys come onto the robot.
    pub(super) async fn provision(&mut self) -> Result<()> {
        let config = format!(
            "identity = {IDENTITY:?}\n\
             [uplink]\nhost = {REMOTE_HOST:?}\nport = {port}\n\
             ca = \"/etc/moai-agent/ca.pem\"\nserver_key = \"/etc/moai-agent/server-key.pem\"\n\
             [tpm]\npcrs = {PCRS:?}\npolicy_key = \"/etc/moai-agent/policy.pub\"\n\
             [sessions]\nwarm = 0\n\
             [[tasks]]\nname = {TASK:?}\nmodel = {MODEL:?}\n",
            port = self.broker.port(),
        );
        self.write(CONFIG, &config).await?;
        let authority = self.pki.authority();
        for (from, to) in [
            (&authority.certificate, "/etc/moai-agent/ca.pem"),
            (&self.pki.server_key(), "/etc/moai-agent/server-key.pem"),
            (&self.policy_key.with_extension("pub"), "/etc/moai-agent/policy.pub"),
            // What is in /run is on no disk.
            (&authority.key, "/run/ca.key"),
        ] {
            self.write(to, &fs::read_to_string(from)?).await?;
        }
        self.guest(&format!("{AS_AGENT} config check")).await?;
        let provision = format!(
            "chown moai-agent /run/ca.key && {AS_AGENT} provision --ca /etc/moai-agent/ca.pem \
             --ca-key /run/ca.key && rm /run/ca.key"
        );
        let screen = self.machine.shell.run_once(&provision, EMULATED).await?.success()?;
        self.recovery_code = recovery_code(&screen)?;
        Ok(())
    }

    /// The service starts, and answers what the model in the clear answers.
    pub(super) async fn main_job(&mut self) -> Result<String> {
        self.start().await?;
        let session = self.session().await?;
        for _ in 0..3 {
            self.job(&session).await?;
        }
        self.all_is_well().await?;
        Ok(format!("{} decisions, all as in the clear", self.answered))
    }

    /// A changed configuration counts, a bad one changes nothing, and the session lives.
    pub(super) async fn reload(&mut self) -> Result<String> {
        let (session, process) = (self.session().await?, self.process().await?);
        self.guest(&format!("printf '[log]\\nlevel = \"debug\"\\n' >>{CONFIG}")).await?;
        self.guest("systemctl reload moai-agent").await?;
        self.guest("journalctl -u moai-agent | grep -q 'configuration read again.*log.level'")
            .await?;
        self.guest(&format!("cp {CONFIG} /run/good && echo 'nonsense = 1' >>{CONFIG}")).await?;
        let bad = self.machine.shell.run_once("systemctl reload moai-agent", EMULATED).await?;
        ensure!(bad.status != 0, "a bad configuration was accepted");
        self.guest(&format!("cp /run/good {CONFIG}")).await?;
        self.job(&session).await?;
        ensure!(self.process().await? == process, "the agent was restarted");
        ensure!(self.session().await? == session, "the session was dropped");
        Ok("the session goes on".to_owned())
    }

    /// An agent that hangs is killed by the watchdog, and goes on with its session.
    pub(super) async fn hang(&mut self) -> Result<String> {
        let session = self.session().await?;
        self.guest("kill -STOP $(systemctl show -P MainPID moai-agent)").await?;
        self.keep().await?;
        self.until("systemctl show -P NRestarts moai-agent", |restarts| restarts == "1").await?;
        self.guest("journalctl -u moai-agent | grep -q 'Watchdog timeout'").await?;
        ensure!(self.session().await? == session, "the session was dropped");
        self.job(&session).await?;
        Ok("killed by the watchdog; the session goes on".to_owned())
    }

    /// After a reboot the agent is there by itself.
    pub(super) async fn reboot(&mut self) -> Result<String> {
        let before = self.boot_id().await?;
        self.guest("systemctl --no-block reboot").await?;
        self.until("cat /proc/sys/kernel/random/boot_id", |now| now != before).await?;
        let session = self.session().await?;
        self.job(&session).await?;
        self.all_is_well().await?;
        Ok("the task is open again".to_owned())
    }

    /// Boots with another command line of the kernel: the root secret stays sealed.
    pub(super) async fn boot_changed(&mut self, word: &str) -> Result<String> {
        self.machine.switch_off().await?;
        self.machine.switch_on(word).await?;
        self.until("systemctl show -P ActiveState moai-agent", |state| state == "failed").await?;
        let ended = self.guest("systemctl show -p ExecMainStatus -p NRestarts moai-agent").await?;
        for fact in [format!("ExecMainStatus={NO_PERMISSION}"), "NRestarts=0".to_owned()] {
            ensure!(ended.lines().any(|line| line == fact), "not {fact}, but {ended}");
        }
        let status = self.machine.shell.run_once("moai-agent status 2>&1", EMULATED).await?.output;
        ensure!(status.contains(CHANGED_PCR), "the status says nothing of {CHANGED_PCR}: {status}");
        self.keep().await?;
        Ok(format!("{CHANGED_PCR} differs, exit status {NO_PERMISSION}, no restart"))
    }

    /// A policy for the present boot state, signed elsewhere, opens the root secret.
    pub(super) async fn sign_policy(&mut self) -> Result<String> {
        let shown = self.guest(&format!("{AS_AGENT} policy show")).await?;
        let present = shown.lines().find_map(|line| line.trim().strip_prefix("present"));
        let measurements = present.context("the present state is not shown")?.trim();
        let policy = self.scratch.path().join("policy.json");
        Launch::new("policy-sign", &binary("moai-agent")?, self.scratch.path())
            .args(["policy", "sign", "--measurements", measurements, "--key"])
            .args([&self.policy_key])
            .args(["--out".as_ref(), policy.as_os_str()])
            .run(STEP)
            .await?
            .success()?;
        let policy = fs::read_to_string(policy)?;
        self.write("/etc/moai-agent/policies.d/second.json", &policy).await?;
        self.start().await?;
        let session = self.session().await?;
        self.job(&session).await?;
        Ok("no reseal, no code".to_owned())
    }

    /// Where no policy fits, the recovery code opens it.
    pub(super) async fn recover(&mut self) -> Result<String> {
        self.boot_changed("third").await?;
        let recover = format!("echo {} | {AS_AGENT} recover", self.recovery_code);
        let screen = self.machine.shell.run_once(&recover, EMULATED).await?.success()?;
        self.recovery_code = recovery_code(&screen)?;
        self.start().await?;
        let session = self.session().await?;
        self.job(&session).await?;
        self.guest(&format!("{AS_AGENT} audit verify")).await?;
        Ok("sealed anew, with another code".to_owned())
    }

    /// Looks for secrets and readings on the disk of the robot, which is off.
    pub(super) async fn search(&mut self) -> Result<String> {
        self.guest("systemctl stop moai-agent").await?;
        self.keep().await?;
        self.machine.switch_off().await?;
        let kept = Kept {
            disk: self.machine.disk(),
            moments: std::mem::take(&mut self.moments),
            trials: self.trials.iter().take(self.answered).cloned().collect(),
        };
        search(kept).await
    }

    /// Copies what opens the secrets of an agent that does not write now.
    async fn keep(&mut self) -> Result<()> {
        let directory = self.scratch.path().join(format!("moment-{}", self.moments.len()));
        let state = directory.join("tpm/state");
        fs::create_dir_all(&state)?;
        for entry in fs::read_dir(self.machine.tpm().join("state"))? {
            let entry = entry?;
            fs::copy(entry.path(), state.join(entry.file_name()))?;
        }
        let [sealed, vault] = ["root.sealed", "vault.redb"].map(|name| directory.join(name));
        self.fetch("root.sealed", &sealed).await?;
        self.fetch("vault.redb", &vault).await?;
        let recovery_code = self.recovery_code.clone();
        self.moments.push(Moment { tpm: directory.join("tpm"), sealed, vault, recovery_code });
        Ok(())
    }

    /// Copies a file of the agent's state.
    async fn fetch(&mut self, name: &str, to: &Path) -> Result<()> {
        let dump = format!("od -An -v -tx1 /var/lib/moai-agent/{name} | tr -d ' \\n'");
        let text = self.guest(&dump).await?;
        Ok(fs::write(to, hex::decode(text.trim())?)?)
    }

    async fn start(&mut self) -> Result<()> {
        // Who was refused too often has to wait, unless a person says otherwise.
        self.guest("systemctl reset-failed moai-agent; systemctl start moai-agent").await.map(drop)
    }

    /// The task's session, when it is active.
    async fn session(&mut self) -> Result<String> {
        let mut session = String::new();
        self.until("moai-agent status --json", |status| {
            let status: Value = serde_json::from_str(status).unwrap_or_default();
            let task = &status["tasks"][TASK];
            task["session"].as_str().unwrap_or_default().clone_into(&mut session);
            status["status"] == "up" && task["state"] == "active" && !session.is_empty()
        })
        .await?;
        Ok(session)
    }

    /// A window of the recordings, and its answer.
    async fn job(&mut self, session: &str) -> Result<()> {
        let trial = self.trials.get(self.answered).context("there are recordings")?;
        let onboard = self.onboard.as_ref().context("the robot has a broker")?;
        let label = self.reference.label(trial)?;
        onboard.input(TASK, &json!({ "samples": trial.samples })).await?;
        let is_answer = |it: &Value| it["session"] == session;
        let topic = format!("{}/task/{TASK}/result", crate::onboard::PREFIX);
        let answer = onboard
            .client
            .wait_for(&topic, "result", EMULATED, |it| it.json().is_ok_and(|it| is_answer(&it)))
            .await?
            .json()?;
        ensure!(answer["label"] == label, "the model says {label} in the clear; {answer}");
        self.answered += 1;
        Ok(())
    }

    async fn all_is_well(&mut self) -> Result<()> {
        let state = self.machine.shell.run("systemctl is-system-running --wait", EMULATED).await?;
        if state.output.trim() != "running" {
            let failed = self.guest("systemctl --failed --no-legend").await?;
            bail!("the system is {}: {failed}", state.output.trim());
        }
        Ok(())
    }

    async fn process(&mut self) -> Result<String> {
        self.guest("systemctl show -P MainPID moai-agent").await
    }

    async fn boot_id(&mut self) -> Result<String> {
        Ok(self.guest("cat /proc/sys/kernel/random/boot_id").await?.trim().to_owned())
    }

    /// Runs a script again and again until its output is as wanted.
    async fn until(&mut self, script: &str, mut wanted: impl FnMut(&str) -> bool) -> Result<()> {
        let mut last = String::new();
        let there = async {
            loop {
                last = self.machine.shell.run(script, EMULATED).await?.output;
                if wanted(last.trim()) {
                    return anyhow::Ok(());
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        };
        if let Ok(there) = tokio::time::timeout(EMULATED, there).await {
            return there;
        }
        let log = self.guest("journalctl -u moai-agent -n 30 --no-pager").await?;
        bail!("`{script}` still says {last}\n{log}")
    }

    async fn guest(&mut self, script: &str) -> Result<String> {
        let answer = self.machine.shell.run_once(script, EMULATED).await?;
        answer.success().with_context(|| format!("`{script}` failed in the guest"))
    }

    async fn write(&mut self, path: &str, text: &str) -> Result<()> {
        let script = format!("cat >{path} <<'END OF FILE'\n{}\nEND OF FILE\n", text.trim_end());
        self.guest(&script).await.map(drop)
    }
}

/// The recovery code on a screen: seven groups of five.
fn recovery_code(screen: &str) -> Result<String> {
    let is_code = |line: &&str| {
        let groups: Vec<&str> = line.split('-').collect();
        groups.len() == 7 && groups.iter().all(|group| group.len() == 5)
    };
    let code = screen.lines().map(str::trim).find(is_code);
    code.map(ToOwned::to_owned).with_context(|| format!("no recovery code was shown:\n{screen}"))
}
