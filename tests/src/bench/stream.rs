//! A kilohertz of six channels: what it costs the agent, and whether anything is lost.
//!
//! Engine and server are those of [`crate::tiny`], because no scheme evaluates 67 windows a second: what
//! is measured is everything else. The robot's own broker is that of docs/onboard.md.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::Run;
use super::measure::{median, percentile};
use super::report::Figure;
use crate::stream::{self, Encoding, Stream};
use crate::tiny::TinyServer;

const SECTION: &str = "stream";
/// What is published into an open task, and into one of the configuration that drops nothing.
const DECLARED: &str = "[[tasks]]\nname = \"block\"\nmodel = \"count\"\nscores = true\n\
                        when_full = \"block\"\n";
const OPEN: &str = r#"{"model": "count", "scores": true}"#;
const PATIENCE: Duration = Duration::from_secs(30);

/// Measures the section.
///
/// # Errors
/// A process does not come up, or a window has not exactly one right answer.
pub async fn run(run: &mut Run) -> Result<()> {
    let windows = run.repeats(4000, 667).try_into()?;
    let variants = [
        ("one sample a message, JSON", "drop", 1, Encoding::Json),
        ("ten samples a message, JSON", "drop", 10, Encoding::Json),
        ("one sample a message, packed", "drop", 1, Encoding::F32),
        ("one sample a message, JSON, `block`", "block", 1, Encoding::Json),
    ];
    run.step("a stream");
    let mut world = stream::builder().agent_toml(DECLARED).start().await?;
    let inside = stream::serve(&mut world, TinyServer::default()).await?;
    let onboard = &world.robot.onboard;
    onboard.client.publish("moai/task/drop/open", OPEN).await?;
    onboard.state("drop", "active").await?;
    for (name, task, batch, encoding) in variants {
        run.step(&format!("a stream: {name}"));
        let stream = Stream::kilohertz(task, batch, encoding, windows);
        let agent = world.robot.agent.process()?;
        let before = (agent.processor_time()?, std::time::Instant::now());
        let account = stream::run(&world, &stream, PATIENCE).await?;
        let used = agent.processor_time()?.saturating_sub(before.0);
        let took = before.1.elapsed();
        ensure!(account.is_complete(), "{name}: {}", account.summary());
        let status = stream::status(&world, task).await?;
        ensure!(status["dropped_samples"] == 0 && status["refused"] == 0, "{name}: {status}");
        let answered = f64::from(u32::try_from(account.answered.len())?);
        run.add(
            Figure::new(SECTION, format!("{name}: windows answered"), answered, "")
                .goal("every one, once", account.is_complete()),
        );
        let percent = used.as_secs_f64() / took.as_secs_f64() * 100.0;
        run.add(Figure::new(SECTION, "… processor time of the agent", percent, "% of a core"));
        let sample = used.as_secs_f64() * 1e6 / f64::from(u32::try_from(stream.samples)?);
        run.add(Figure::new(SECTION, "… for each sample", sample, "µs"));
        let seen: Vec<f64> = account.answered.values().map(|it| it.as_secs_f64() * 1e3).collect();
        let agent: Vec<f64> = account.in_agent.iter().map(|it| it.as_secs_f64() * 1e3).collect();
        run.add(Figure::new(SECTION, "… last sample to answer, p50", median(seen.clone()), "ms"));
        run.add(Figure::new(SECTION, "… last sample to answer, p99", percentile(&seen, 99), "ms"));
        run.add(Figure::new(SECTION, "… of it in agent and server, p50", median(agent), "ms"));
    }
    drop(inside);
    world.robot.agent.stop().await?;
    run.note(
        SECTION,
        format!(
            "{windows} windows of 15 samples at 1,000 samples/s each; engine and server compute on \
             keys of a few bytes, in the place of FHE"
        ),
    );
    Ok(())
}
