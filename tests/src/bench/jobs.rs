//! A three-class answer for one window, end to end with real processes, and the bare evaluation.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use moai_agent::secrets::OsEntropy;
use moai_fhe::{Context, EvaluationKeys};
use serde_json::Value;

use super::Run;
use super::measure::{Series, compare, median, percentile};
use super::report::Figure;
use super::subject;
use crate::World;

const SECTION: &str = "jobs";
const TASK: &str = "arm";
const MODEL: &str = "grasp";

/// Measures the section.
///
/// # Errors
/// A process does not come up, or a job is not answered.
pub async fn run(run: &mut Run) -> Result<()> {
    run.step("evaluating in process");
    let [one, two] = evaluations(run)?;
    run.step("answers end to end");
    let world = World::builder().log_level("info").start().await?;
    let opening = Instant::now();
    let onboard = &world.robot.onboard;
    onboard.open(TASK, MODEL).await?;
    onboard.state(TASK, "active").await?;
    let opening = opening.elapsed().as_secs_f64();
    let trials = subject::trials()?;
    let count = run.repeats(100, 8);
    let mut answers = Vec::new();
    let mut seen = Vec::new();
    for (number, trial) in trials.iter().cycle().take(count).enumerate() {
        run.step(&format!("answer {} of {count}", number + 1));
        let start = Instant::now();
        for sample in &trial.samples {
            onboard.input(TASK, sample).await?;
        }
        answers.push(onboard.result(TASK).await?);
        seen.push(start.elapsed().as_secs_f64() * 1e3);
    }
    world.stop().await?;
    let total = millis(&answers, "total_us")?;
    let worst = percentile(&total, 99);
    let evaluation = two.wall() * 1e3;
    run.add(Figure::new(SECTION, "answer, p50", median(total.iter().copied()), "ms").against(
        "evaluation alone on 2 threads",
        evaluation,
        median(total.iter().copied()) / evaluation,
        "times as long",
    ));
    run.add(Figure::new(SECTION, "answer, p99", worst, "ms").goal("≤ 2,000 ms", worst <= 2000.0));
    for (part, field) in [
        ("features, encryption", "encrypt_us"),
        ("spool, links, brokers, queue", "uplink_us"),
        ("evaluation by the server", "compute_us"),
        ("checks, decryption", "decrypt_us"),
    ] {
        let values = millis(&answers, field)?;
        let middle = median(values.iter().copied());
        run.add(Figure::new(SECTION, format!("… of it {part}, p50"), middle, "ms"));
        let worst = percentile(&values, 99);
        run.add(Figure::new(SECTION, format!("… of it {part}, p99"), worst, "ms"));
    }
    run.add(Figure::new(
        SECTION,
        "seen by onboard software, 15 samples to label, p50",
        median(seen),
        "ms",
    ));
    run.add(Figure::new(SECTION, "task opened: keys, upload, unpacking", opening, "s"));
    add_evaluations(run, &one, &two);
    add_bytes(run, &answers)?;
    run.note(
        SECTION,
        format!(
            "{count} recorded windows one after the other, p99 of {count}; answer: from a \
         window's last sample to the decrypted label"
        ),
    );
    Ok(())
}

fn evaluations(run: &Run) -> Result<[Series; 2]> {
    let (engine, model) = (subject::engine()?, subject::grasp()?);
    let (one, two) = (subject::pool(1)?, subject::pool(2)?);
    let keys = two.install(|| {
        let bytes = engine.evaluation_keys()?;
        anyhow::Ok(EvaluationKeys::from_bytes(&Context::tfhe(), &bytes)?)
    })?;
    let levels = subject::levels(model.card())?;
    let body = engine.encrypt(model.card(), &levels, &mut OsEntropy)?;
    let evaluate = || Ok(model.evaluate(&keys, &body)?.len());
    compare(run.repeats(15, 2), [&mut || one.install(evaluate), &mut || two.install(evaluate)])
}

fn add_evaluations(run: &mut Run, one: &Series, two: &Series) {
    run.add(Figure::new(SECTION, "evaluation alone, 1 thread", one.wall() * 1e3, "ms"));
    run.add(Figure::new(SECTION, "evaluation alone, 2 threads", two.wall() * 1e3, "ms").against(
        "1 thread",
        one.wall() * 1e3,
        one.wall_over(two),
        "times as fast",
    ));
}

fn add_bytes(run: &mut Run, answers: &[Value]) -> Result<()> {
    let bytes = |field: &str| -> Result<f64> {
        let value = answers.first().map_or(&Value::Null, |answer| &answer["bytes"][field]);
        value.as_f64().with_context(|| format!("the answer has no bytes.{field}"))
    };
    let up = bytes("ciphertext_up")?;
    let plain = bytes("plain")?;
    run.add(
        Figure::new(SECTION, "ciphertext up", up, "B")
            .against("the samples as f64", plain, plain / up, "times fewer")
            .goal("≤ 150 B", up <= 150.0),
    );
    for (name, field) in [
        ("ciphertext down", "ciphertext_down"),
        ("frame up", "frame_up"),
        ("frame down", "frame_down"),
    ] {
        run.add(Figure::new(SECTION, name, bytes(field)?, "B"));
    }
    Ok(())
}

/// A field of all answers' timing, in milliseconds.
fn millis(answers: &[Value], field: &str) -> Result<Vec<f64>> {
    let values: Vec<f64> =
        answers.iter().filter_map(|answer| answer["timing"][field].as_f64()).collect();
    ensure!(values.len() == answers.len(), "not every answer has timing.{field}");
    Ok(values.into_iter().map(|micros| micros / 1e3).collect())
}
