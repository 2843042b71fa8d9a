//! What the agent takes of a robot: disk, memory, and time to start, as it is built for release.
//!
//! `cargo xtask footprint` builds the programs and says in [`RELEASES`] where they lie: a directory
//! with one directory for each selection of schemes, called `both` and `ckks`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use tokio::net::UnixDatagram;

use super::Run;
use super::measure::median;
use super::memory::mebibytes;
use super::report::Figure;
use super::subject;
use crate::World;
use crate::onboard::SLOW;
use crate::process::Memory;
use crate::reference::Scheme;
use crate::robot::Agent;

/// The environment variable.
pub const RELEASES: &str = "MOAI_RELEASES";

const SECTION: &str = "footprint";
const TASK: &str = "arm";

/// The schemes, each with a model that is asked.
const SCHEMES: [(Scheme, &str); 2] = [(Scheme::Ckks, "grasp-linear"), (Scheme::Tfhe, "grasp")];

/// An agent to measure.
struct Release {
    case: &'static str,
    program: PathBuf,
    /// What it can be asked under.
    schemes: &'static [(Scheme, &'static str)],
}

/// Measures the section.
///
/// # Errors
/// The programs are not there, or one does not work.
pub async fn run(run: &mut Run) -> Result<()> {
    let directory = std::env::var_os(RELEASES);
    let directory = directory.context("`cargo xtask footprint` builds what is to be measured")?;
    for (case, name, schemes) in
        [("both schemes", "both", &SCHEMES[..]), ("CKKS alone", "ckks", &SCHEMES[..1])]
    {
        let program = Path::new(&directory).join(name).join("moai-agent");
        let release = Release { case, program, schemes };
        release.measure(run).await.with_context(|| format!("the agent with {case}"))?;
    }
    run.note(
        SECTION,
        "release build; size of the stripped program; memory as the kernel counts it (VmRSS, VmHWM), \
         executable and libraries included; peak: a task opened, its keys made and sent, and jobs \
         answered; start: from fork to READY=1, which comes with both links up, on swtpm; median",
    );
    Ok(())
}

impl Release {
    async fn measure(&self, run: &mut Run) -> Result<()> {
        run.step(&format!("footprint with {}", self.case));
        let bytes = std::fs::metadata(&self.program)?.len();
        let size = mebibytes(bytes / 1024);
        let is_small = self.schemes.len() == 1;
        let add =
            |run: &mut Run, name: String, value: f64, unit, goal: Option<(&'static str, f64)>| {
                let figure = Figure::new(SECTION, name, value, unit).of(self.case);
                run.add(match goal {
                    Some((text, most)) => figure.goal(text, value <= most),
                    None => figure,
                });
            };
        // The goals are those of the agent for small robots.
        let small = |text, most| is_small.then_some((text, most));
        add(run, "program".to_owned(), size, "MiB", small("≤ 8 MB", 8.0e6 / 1024.0 / 1024.0));
        for (index, (scheme, model)) in self.schemes.iter().enumerate() {
            let mut world =
                World::builder().scheme(*scheme).log_level("info").agent_stopped().start().await?;
            world.robot.agent.use_program(&self.program);
            let mut starts = Vec::new();
            for _ in 0..run.repeats(10, 3) {
                starts.push(start(&mut world.robot.agent).await?);
                world.robot.agent.stop().await?;
            }
            world.robot.start_agent().await?;
            let idle = world.robot.agent.process()?.memory()?;
            if index == 0 {
                add(
                    run,
                    "start to READY".to_owned(),
                    median(starts),
                    "ms",
                    Some(("≤ 500 ms", 500.0)),
                );
                let resident = mebibytes(idle.resident_kib);
                add(
                    run,
                    "idle".to_owned(),
                    resident,
                    "MiB",
                    small("≤ 15 MB", 15.0e6 / 1024.0 / 1024.0),
                );
            }
            let used = use_it(&world, model, run.repeats(30, 4)).await?;
            add(run, format!("with a {scheme} task"), mebibytes(used.resident_kib), "MiB", None);
            add(run, format!("peak, {scheme}"), mebibytes(used.peak_kib), "MiB", None);
            world.stop().await?;
        }
        Ok(())
    }
}

/// Starts the agent as systemd does; returns the milliseconds until it says that it is ready.
async fn start(agent: &mut Agent) -> Result<f64> {
    let scratch = tempfile::tempdir()?;
    let path = scratch.path().join("notify");
    let systemd = UnixDatagram::bind(&path)?;
    agent.set_env("NOTIFY_SOCKET", &path.to_string_lossy());
    let began = Instant::now();
    agent.spawn()?;
    let ready = async {
        let mut buffer = [0; 4096];
        loop {
            let length = systemd.recv(&mut buffer).await?;
            let told = std::str::from_utf8(&buffer[..length])?;
            if told.lines().any(|line| line == "READY=1") {
                return anyhow::Ok(began.elapsed());
            }
        }
    };
    let ready = tokio::time::timeout(SLOW, ready).await.context("the agent is never ready")??;
    Ok(ready.as_secs_f64() * 1000.0)
}

/// Opens a task and has windows answered.
async fn use_it(world: &World, model: &str, windows: usize) -> Result<Memory> {
    let onboard = &world.robot.onboard;
    onboard.open(TASK, model).await?;
    onboard.state(TASK, "active").await?;
    for trial in subject::trials()?.iter().take(windows) {
        for sample in &trial.samples {
            onboard.input(TASK, sample).await?;
        }
        let answer = onboard.result(TASK).await?;
        ensure!(answer["label"].is_string(), "no label in {answer}");
    }
    world.robot.agent.process()?.memory()
}
