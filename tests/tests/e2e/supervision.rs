//! What systemd and an operator see: READY, status, a quick end.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use moai_tests::World;
use moai_tests::onboard::SLOW;
use moai_tests::process::{Launch, STEP, binary};
use moai_tests::robot::Agent;
use tokio::net::UnixDatagram;

use crate::stage::{ARM, QUICK, numbers, start, trials};

const EX_UNAVAILABLE: i32 = 69;

/// Systemd's end of the notification socket (`sd_notify(3)`).
pub(crate) struct Systemd(UnixDatagram);

impl Systemd {
    pub(crate) fn listen(socket: &Path) -> Result<Self> {
        Ok(Self(UnixDatagram::bind(socket)?))
    }

    /// Receives until a notification contains `wanted`; returns all up to it.
    pub(crate) async fn told(&self, wanted: &str) -> Result<Vec<String>> {
        let mut told = Vec::new();
        let receive = async {
            loop {
                let mut buffer = vec![0; 4096];
                let length = self.0.recv(&mut buffer).await?;
                buffer.truncate(length);
                told.push(String::from_utf8(buffer)?);
                if told.last().is_some_and(|last| last.contains(wanted)) {
                    return anyhow::Ok(());
                }
            }
        };
        let received = tokio::time::timeout(SLOW, receive).await;
        received.with_context(|| format!("no {wanted} after {told:?}"))??;
        Ok(told)
    }

    /// What is told within `time`, and what was told before.
    async fn told_within(&self, time: Duration) -> Result<String> {
        let mut told = String::new();
        let mut buffer = [0; 4096];
        let receive = async {
            loop {
                let length = self.0.recv(&mut buffer).await?;
                told.push_str(std::str::from_utf8(&buffer[..length])?);
            }
        };
        let received: Result<Result<()>, _> = tokio::time::timeout(time, receive).await;
        if let Ok(failed) = received {
            failed?;
        }
        Ok(told)
    }
}

/// How long systemd waits for the watchdog in these tests.
const WATCHDOG: Duration = Duration::from_secs(2);

/// Lets the agent believe that systemd has started it.
pub(crate) fn supervise(agent: &mut Agent, socket: &Path) -> Result<Systemd> {
    let systemd = Systemd::listen(socket)?;
    agent.set_env("NOTIFY_SOCKET", &socket.to_string_lossy());
    agent.set_env("WATCHDOG_USEC", &WATCHDOG.as_micros().to_string());
    Ok(systemd)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_watchdog_is_fed_until_the_agent_hangs() -> Result<()> {
    let mut stage = start(World::builder().agent_stopped()).await?;
    let socket = stage.directory().join("notify");
    let systemd = supervise(&mut stage.robot.agent, &socket)?;
    stage.robot.start_agent().await?;
    let until_fed = systemd.told("WATCHDOG=1").await?.concat();
    assert!(until_fed.contains("READY=1"), "{until_fed}");
    assert!(until_fed.contains("STATUS=root secret unsealed, both links up"), "{until_fed}");
    systemd.told("WATCHDOG=1").await?;

    stage.robot.agent.process()?.freeze()?;
    // What was told before the freeze.
    systemd.told_within(Duration::ZERO).await?;
    assert_eq!(systemd.told_within(WATCHDOG).await?, "");
    stage.robot.agent.process()?.thaw()?;
    systemd.told("WATCHDOG=1").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_watchdog_starves_while_one_part_hangs_and_systemd_is_told_which() -> Result<()> {
    let mut stage = start(World::builder().agent_stopped()).await?;
    let (socket, hang) = (stage.directory().join("notify"), stage.directory().join("hang"));
    stage.robot.agent.use_double(&[("MOAI_TEST_HANG", &hang.to_string_lossy())]);
    let systemd = supervise(&mut stage.robot.agent, &socket)?;
    stage.robot.start_agent().await?;
    for part in ["onboard link", "spool", "uplink"] {
        systemd.told("WATCHDOG=1").await?;
        std::fs::write(&hang, part)?;
        systemd.told(&format!("STATUS=hangs, and is started anew soon: {part}\n")).await?;
        let meanwhile = systemd.told_within(WATCHDOG).await?;
        assert!(!meanwhile.contains("WATCHDOG=1"), "fed while {part} hangs: {meanwhile}");
        std::fs::remove_file(&hang)?;
    }
    systemd.told("WATCHDOG=1").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn systemd_is_told_ready_only_after_both_links_are_up() -> Result<()> {
    let stage = start(World::builder().agent_stopped().proxied()).await?;
    let proxy = stage.proxy.as_ref().context("a proxy was asked for")?;
    let socket = stage.directory().join("notify");
    let systemd = Systemd::listen(&socket)?;
    proxy.close_to_new(true);
    let agent = Launch::new("agent", &binary("moai-agent")?, stage.directory())
        .args(["--config".as_ref(), stage.robot.agent.config_file().as_os_str()])
        .args(["run"])
        .env("NOTIFY_SOCKET", &socket)
        .spawn()?;

    let health = stage.robot.onboard.health("degraded").await?;
    assert!(health["reasons"][0].as_str().is_some_and(|why| why.starts_with("uplink: ")));
    let without_uplink = systemd.told("STATUS=uplink: ").await?;
    assert!(!without_uplink.concat().contains("READY=1"), "{without_uplink:?}");
    proxy.close_to_new(false);
    let until_ready = systemd.told("READY=1").await?;
    assert!(!until_ready.concat().contains("STOPPING=1"), "{until_ready:?}");
    stage.robot.onboard.health("up").await?;

    let ended = agent.terminate(STEP).await?;
    assert!(ended.success(), "{}", agent.log().tail());
    systemd.told("STOPPING=1").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn status_shows_the_task_to_people_and_to_programs() -> Result<()> {
    let mut stage = start(World::builder()).await?;
    let session = stage.open_arm().await?;
    stage.submit(&trials()?[0]).await?;
    stage.robot.onboard.result(ARM).await?;

    let text = stage.robot.agent.command(&["status"]).await?.success()?;
    for line in ["acme.robot-1", "up", "arm: active with force-alarm"] {
        assert!(text.contains(line), "{line} is not in:\n{}", text.text());
    }
    let json = stage.robot.agent.command(&["status", "--json"]).await?.success()?;
    let status: serde_json::Value = serde_json::from_str(&json.text())?;
    let task = &status["tasks"][ARM];
    assert_eq!(task["state"], "active");
    assert_eq!(task["model"], QUICK);
    assert_eq!(task["session"], session);
    assert_eq!(task["answered"], 1);

    stage.robot.agent.stop().await?;
    let nobody = stage.robot.agent.command(&["status"]).await?;
    assert_eq!(nobody.status.code(), Some(EX_UNAVAILABLE), "{}", nobody.log.tail());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_the_agent_in_5_seconds_and_the_job_under_way_is_answered_later() -> Result<()>
{
    let mut stage = start(World::builder()).await?;
    stage.watch_uplink().await?;
    let session = stage.open_arm().await?;
    stage.compute.process()?.freeze()?;
    stage.submit(&trials()?[0]).await?;
    stage.job_under_way().await?;

    let asked = Instant::now();
    let ended = stage.robot.agent.process()?.terminate(STEP).await?;
    let took = asked.elapsed();
    assert!(ended.success(), "{}", stage.robot.agent.process()?.log().tail());
    assert!(took < Duration::from_secs(5), "it took {took:?}");
    stage.robot.onboard.health("down").await?;

    stage.compute.process()?.thaw()?;
    stage.robot.start_agent().await?;
    assert_eq!(stage.active_session().await?, session);
    assert_eq!(stage.robot.onboard.result(ARM).await?["job"], 1);
    assert_eq!(numbers(&stage.close_arm().await?), [1]);
    Ok(())
}
