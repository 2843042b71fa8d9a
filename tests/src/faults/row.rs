//! One row of the table: a world, a load, a fault in the middle of it, and the account.

use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::time::Instant;

use super::fault::{Damage, Fault, Kept, Part};
use super::isolation::{Isolation, SmallDisk};
use super::ledger::{self, Account};
use super::load::{self, AGENT_TOML, DIGITS, Load, TASK};
use crate::World;
use crate::onboard::SLOW;

/// Outcomes before the fault, and after it.
const OUTCOMES: usize = 15;
/// How long the work may take to go on after a fault.
const RECOVERY: Duration = Duration::from_mins(1);
/// How long nothing comes before what is missing counts as missing.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long is listened for what should not come.
const LISTEN: Duration = Duration::from_secs(1);
/// Enough for vault, spool and audit log, and little to fill.
const DISK_KIB: u32 = 12 * 1024;
const SECOND: Duration = Duration::from_secs(1);

/// A row.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// Its name on the command line.
    pub name: &'static str,
    /// What happens, for people.
    pub what: &'static str,
    fault: Fault,
    /// Whether the uplink's broker keeps its queues over a restart.
    durable: bool,
}

const fn row(name: &'static str, what: &'static str, fault: Fault) -> Row {
    Row { name, what, fault, durable: false }
}

/// All rows, in the order in which they run.
pub const ROWS: &[Row] = &[
    row("none", "nothing", Fault::None),
    row("kill-agent", "kill -9 of the agent", Fault::Kill(Part::Agent)),
    row("kill-server", "kill -9 of the server", Fault::Kill(Part::Server)),
    row("kill-broker", "kill -9 of the uplink's broker", Fault::Kill(Part::UplinkBroker)),
    Row {
        durable: true,
        ..row(
            "kill-durable-broker",
            "the same of a broker that keeps its queues",
            Fault::Kill(Part::UplinkBroker),
        )
    },
    row("kill-onboard-broker", "kill -9 of the robot's broker", Fault::Kill(Part::OnboardBroker)),
    row("kill-tpm", "kill -9 of the TPM, and a cut", Fault::Kill(Part::Tpm)),
    row(
        "freeze-server",
        "server stopped for 8 s",
        Fault::Freeze(Part::Server, SECOND.saturating_mul(8)),
    ),
    row(
        "freeze-broker",
        "uplink's broker stopped for 12 s",
        Fault::Freeze(Part::UplinkBroker, SECOND.saturating_mul(12)),
    ),
    row(
        "freeze-tpm",
        "TPM stopped for 8 s, and a cut",
        Fault::Freeze(Part::Tpm, SECOND.saturating_mul(8)),
    ),
    row("cut", "five cuts of the uplink", Fault::Cuts(5)),
    row("stall", "uplink stalls for 10 s, and a cut", Fault::Stall(SECOND.saturating_mul(10))),
    row(
        "delay",
        "200 ms each way for 10 s",
        Fault::Delay(Duration::from_millis(200), SECOND.saturating_mul(10)),
    ),
    row(
        "packet-loss",
        "10 % of packets lost for 10 s",
        Fault::PacketLoss(SECOND.saturating_mul(10)),
    ),
    row(
        "slow-upload",
        "another task's keys go up at 60 KB/s for 30 s",
        Fault::SlowUpload(60_000, SECOND.saturating_mul(30)),
    ),
    row(
        "clock-ahead",
        "wall clock 1 h ahead for 8 s",
        Fault::Clock(3600, SECOND.saturating_mul(8)),
    ),
    row(
        "clock-behind",
        "wall clock 1 h behind for 8 s",
        Fault::Clock(-3600, SECOND.saturating_mul(8)),
    ),
    row("full-disk", "state directory full for 5 s", Fault::FullDisk(SECOND.saturating_mul(5))),
    row(
        "start-without-tpm",
        "agent and TPM killed, the TPM back 5 s after the agent",
        Fault::StartWithoutTpm(SECOND.saturating_mul(5)),
    ),
    row(
        "vault-flips",
        "agent killed with jobs waiting, a bit of each page of its vault flipped",
        Fault::Corrupt(Kept::Vault, Damage::Flips),
    ),
    row(
        "vault-truncated",
        "the same, half of its vault missing",
        Fault::Corrupt(Kept::Vault, Damage::Truncation),
    ),
    row(
        "spool-flips",
        "the same, a bit of three jobs in its spool flipped",
        Fault::Corrupt(Kept::Spool, Damage::Flips),
    ),
    row(
        "spool-truncated",
        "the same, the end of the last job in its spool missing",
        Fault::Corrupt(Kept::Spool, Damage::Truncation),
    ),
    row(
        "config-flips",
        "the same, a bit of its configuration flipped until somebody repairs it",
        Fault::Corrupt(Kept::Config, Damage::Flips),
    ),
    row(
        "config-truncated",
        "the same, half of its configuration missing",
        Fault::Corrupt(Kept::Config, Damage::Truncation),
    ),
];

/// What came of a row.
#[derive(Debug)]
pub struct Report {
    /// What was counted.
    pub account: Account,
    /// From the end of the fault to the next outcome.
    pub recovery: Duration,
    /// Answers that the agent gave to its broker, and that the broker lost as it died.
    pub lost_by_broker: usize,
}

impl Row {
    /// The row of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        ROWS.iter().find(|row| row.name == name)
    }

    /// Why it cannot be run here; none if it can.
    #[must_use]
    pub fn obstacle(&self, isolation: Isolation) -> Option<&'static str> {
        match self.fault {
            Fault::PacketLoss(_) => isolation.no_packet_loss(),
            Fault::FullDisk(_) => isolation.no_mounts(),
            _ => None,
        }
    }

    /// Runs it.
    ///
    /// # Errors
    /// Something does not come up or does not come back; or a count that must be 0 is not.
    pub async fn run(&self) -> Result<Report> {
        let models = tempfile::tempdir()?;
        load::write_model(models.path())?;
        let mut builder = World::builder()
            .models(models.path())
            .agent_toml(AGENT_TOML)
            .agent_toml("[uplink]\nkeep_alive_seconds = 5\n")
            .log_level("debug")
            .proxied();
        if self.durable {
            builder = builder.durable_broker();
        }
        let mut world = builder.unprovisioned().start().await?;
        let disk = if self.fault.fills_the_disk() {
            Some(SmallDisk::mount(&world.robot.agent.state_directory(), DISK_KIB)?)
        } else {
            None
        };
        if let Some((key, value)) = self.fault.double(world.directory()) {
            world.robot.agent.use_double(&[(key, &value)]);
        }
        world.robot.agent.provision().await?;
        world.robot.start_agent().await?;
        let report = self.strike(&mut world).await;
        world.robot.agent.stop().await?;
        drop(disk);
        report
    }

    async fn strike(&self, world: &mut World) -> Result<Report> {
        if let Some(proxy) = &world.proxy {
            proxy.stop_recording();
        }
        world.robot.onboard.state(TASK, "active").await?;
        let mut load = Load::start(world.robot.broker.port()).await?;
        load.more_outcomes(OUTCOMES, SLOW).await.context("before the fault")?;
        self.fault.strike(world).await?;
        let repaired = Instant::now();
        let first = load.more_outcomes(1, RECOVERY).await.context("after the fault")?;
        let recovery = first.last.map_or(Duration::ZERO, |last| last.duration_since(repaired));
        load.more_outcomes(OUTCOMES, RECOVERY).await.context("after the fault")?;
        let (sent, outcomes) = load.end(PATIENCE, LISTEN).await?;
        let mut account = ledger::account(DIGITS, &sent, &outcomes);
        let lost_by_broker = if self.fault.kills_the_onboard_broker() {
            // What the agent counts as answered was in the broker's hands.
            let given = given(world).await?;
            let missing = given.saturating_sub(outcomes.len() - account.doubled).min(account.lost);
            account.lost -= missing;
            missing
        } else {
            0
        };
        Ok(Report { account, recovery, lost_by_broker })
    }

    /// Why a report is bad; none if it is good.
    #[must_use]
    pub fn complaint(&self, report: &Report) -> Option<String> {
        let Account {
            sent, lost, doubled, wrong, untaken, refused, codes, slowest, remarks, ..
        } = &report.account;
        let mut complaints = Vec::new();
        let mut demand_none = |count: usize, what: &str| {
            if count > 0 {
                complaints.push(format!("{count} of {sent} windows {what}"));
            }
        };
        demand_none(*lost, "were lost");
        demand_none(*wrong, &format!("have a wrong answer: {remarks:?}"));
        if !self.fault.kills_the_onboard_broker() {
            demand_none(*doubled, "have two outcomes");
            let untaken = untaken.saturating_sub(self.fault.destroys());
            demand_none(untaken, "were not taken");
        }
        if !self.fault.costs_jobs() {
            demand_none(*refused, &format!("were refused: {codes:?}"));
        }
        if self.fault.patience().is_some_and(|patience| *slowest > patience) {
            complaints.push(format!("an answer took {slowest:?}"));
        }
        (!complaints.is_empty()).then(|| complaints.join(", "))
    }
}

/// How many outcomes the agent has given since it started.
async fn given(world: &World) -> Result<usize> {
    let status = world.robot.agent.command(&["status", "--json"]).await?.success()?;
    let status: serde_json::Value = serde_json::from_str(&status.text())?;
    let task = &status["tasks"][TASK];
    let count = |key: &str| task[key].as_u64().with_context(|| format!("no {key} in {status}"));
    Ok(usize::try_from(count("answered")? + count("refused")?)?)
}
