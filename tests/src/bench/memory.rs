//! Resident memory of agent and server, as the kernel counts it.

use anyhow::Result;

use super::Run;
use super::report::Figure;
use super::subject;
use crate::World;
use crate::process::{Memory, Process};

const SECTION: &str = "memory";
const TASK: &str = "arm";

/// Measures the section.
///
/// # Errors
/// A process does not come up, or a job is not answered.
pub async fn run(run: &mut Run) -> Result<()> {
    run.step("memory of agent and server");
    let world = World::builder().log_level("info").start().await?;
    let onboard = &world.robot.onboard;
    let (agent, server) = (world.robot.agent.process()?, world.compute.process()?);
    let idle = [agent.memory()?, server.memory()?];
    onboard.open(TASK, "grasp").await?;
    onboard.state(TASK, "active").await?;
    let opened = [agent.memory()?, server.memory()?];
    let mut computing = Vec::new();
    for trial in subject::trials()?.iter().take(run.repeats(30, 4)) {
        for sample in &trial.samples {
            onboard.input(TASK, sample).await?;
        }
        computing.push(during(server, onboard.result(TASK)).await?);
    }
    let used = [agent.memory()?, server.memory()?];
    onboard.close(TASK).await?;
    onboard.state(TASK, "ended").await?;
    let closed = [agent.memory()?, server.memory()?];
    let computing = computing.into_iter().fold(0.0, f64::max);
    for (name, moments) in [
        ("agent", [idle[0], opened[0], used[0], closed[0]]),
        ("server", [idle[1], opened[1], used[1], closed[1]]),
    ] {
        let labels = ["idle, no keys", "a task is open", "after jobs", "the task is closed"];
        for (label, memory) in labels.into_iter().zip(moments) {
            let resident = mebibytes(memory.resident_kib);
            let figure = Figure::new(SECTION, format!("{name}, {label}"), resident, "MiB");
            let has_goal = name == "agent" && label == labels[0];
            run.add(if has_goal { figure.goal("≤ 40 MiB", resident <= 40.0) } else { figure });
        }
        if name == "server" {
            run.add(Figure::new(SECTION, "server, while computing", computing, "MiB"));
        }
        let [_, _, _, Memory { peak_kib, .. }] = moments;
        run.add(Figure::new(SECTION, format!("{name}, peak"), mebibytes(peak_kib), "MiB"));
    }
    run.note(
        SECTION,
        "resident set (VmRSS) and its peak (VmHWM), executable and libraries included; one \
         session at a time",
    );
    world.stop().await
}

/// The largest resident size of a process until an answer comes.
async fn during<T>(process: &Process, answer: impl Future<Output = Result<T>>) -> Result<f64> {
    let mut largest = 0.0_f64;
    tokio::pin!(answer);
    let mut look = tokio::time::interval(std::time::Duration::from_millis(20));
    loop {
        tokio::select! {
            answer = &mut answer => return answer.map(|_| largest),
            _ = look.tick() => largest = largest.max(mebibytes(process.memory()?.resident_kib)),
        }
    }
}

pub(super) fn mebibytes(kib: u64) -> f64 {
    f64::from(u32::try_from(kib).unwrap_or(u32::MAX)) / 1024.0
}
