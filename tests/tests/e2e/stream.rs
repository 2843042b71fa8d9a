//! A kilohertz of samples, which is more windows than any scheme evaluates: what is lost, what is
//! dropped, and whether the books say so.

use std::time::Duration;

use anyhow::{Result, ensure};
use moai_tests::mqtt::Message;
use moai_tests::onboard::SLOW;
use moai_tests::stream::{self, Encoding, Run, Stream};
use moai_tests::tiny::{Gate, TinyServer};

use crate::stage::start;

/// A task that may lose nothing, beside those that messages open.
const DECLARED: &str = "[[tasks]]\nname = \"held\"\nmodel = \"count\"\nscores = true\n\
                        when_full = \"block\"\n";
/// The session is followed by the next in the middle of a stream.
const SHORT: &str = "[sessions]\ndecryption_budget = 500\n";
const OPEN: &str = r#"{"model": "count", "scores": true}"#;
/// Ten seconds of a kilohertz.
const WINDOWS: u64 = 667;
const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_a_kilohertz_loses_nothing() -> Result<()> {
    let builder = stream::builder().agent_toml(SHORT).agent_toml(DECLARED);
    let mut stage = start(builder).await?;
    let _inside = stream::serve(&mut stage, TinyServer::default()).await?;
    let onboard = &stage.robot.onboard;
    onboard.client.publish("moai/task/open/open", OPEN).await?;
    onboard.state("open", "active").await?;
    let streams = [
        Stream::kilohertz("open", 1, Encoding::Json, WINDOWS),
        Stream::kilohertz("held", 10, Encoding::F32, WINDOWS),
    ];
    for stream in streams {
        let account = stream::run(&stage, &stream, PATIENCE).await?;
        ensure!(account.is_complete(), "{}: {}", stream.task, account.summary());
        let status = stream::status(&stage, &stream.task).await?;
        let counted = [&status["answered"], &status["refused"], &status["dropped_samples"]];
        assert_eq!(counted, [WINDOWS, 0, 0], "{status}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_there_is_no_room_for_stays_at_the_broker_whoever_is_killed() -> Result<()> {
    // Room for some hundreds of windows.
    let small = "[spool]\nmax_bytes = 65536\n";
    let mut stage = start(stream::builder().agent_toml(small).agent_toml(DECLARED)).await?;
    let gate = Gate::default();
    gate.set_shut(true);
    let _inside = stream::serve(&mut stage, TinyServer::behind(&gate)).await?;
    stage.robot.onboard.state("held", "active").await?;
    // Each message is a window, so that none is under way in memory only.
    let stream = Stream {
        task: "held".to_owned(),
        rate: None,
        batch: 15,
        encoding: Encoding::F32,
        samples: 15 * 3000,
    };
    let run = Run::start(&stage, &stream).await?;
    stage.health_says("held up").await?;
    stage.robot.agent.kill().await?;
    stage.robot.onboard.forget_health();
    stage.robot.agent.spawn()?;
    stage.health_says("held up").await?;
    let status = stream::status(&stage, "held").await?;
    assert_eq!([&status["refused"], &status["dropped_samples"]], [0, 0], "{status}");
    gate.set_shut(false);
    let account = run.account(PATIENCE).await?;
    // A window may come again that was on the robot's disk a moment before the kill.
    ensure!(
        account.missing().0 == 0 && account.wrong == 0 && account.refused.is_empty(),
        "{}",
        account.summary()
    );
    stage.health_says(r#""status":"up""#).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_dropped_is_counted_to_the_sample() -> Result<()> {
    /// Messages that wait for a task.
    const KEPT: u64 = 8192;
    const DROPPED: u64 = 500 * 15;
    let task = "[[tasks]]\nname = \"eager\"\nmodel = \"count\"\nscores = true\n";
    let mut stage = start(stream::builder().agent_toml(task)).await?;
    stream::use_tiny(&mut stage);
    stage.robot.agent.spawn()?;
    let onboard = &stage.robot.onboard;
    // No server has the model yet: samples wait.
    onboard.state("eager", "opening").await?;
    let stream = Stream {
        task: "eager".to_owned(),
        rate: None,
        batch: 1,
        encoding: Encoding::F32,
        samples: DROPPED + KEPT,
    };
    let run = Run::start(&stage, &stream).await?;
    // What the agent cannot read it refuses at once: then it has read all that came before.
    let is_refused = |message: &Message| message.json().is_ok_and(|it| it["code"] == "malformed");
    onboard.raw_input("eager", "}").await?;
    onboard.client.wait_for("moai/task/eager/error", "refusal", SLOW, is_refused).await?;
    assert_eq!(stream::status(&stage, "eager").await?["queued"], KEPT);

    let _inside = stream::compute(&mut stage, TinyServer::default()).await?;
    let account = run.account(PATIENCE).await?;
    let windows = KEPT / 15;
    let expected: Vec<u64> = (DROPPED / 15..DROPPED / 15 + windows).collect();
    let answered: Vec<u64> = account.answered.keys().copied().collect();
    ensure!(answered == expected, "{}", account.summary());
    assert_eq!((account.wrong, account.doubled, account.disordered), (0, 0, 0));
    assert_eq!(account.refused["samples_dropped"], DROPPED, "{:?}", account.refused);
    let status = stream::status(&stage, "eager").await?;
    let counted = [&status["answered"], &status["dropped_samples"], &status["queued"]];
    assert_eq!(counted, [windows, DROPPED, 0], "{status}");
    Ok(())
}
