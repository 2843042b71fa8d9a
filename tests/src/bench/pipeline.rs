//! The agent's path from onboard messages to the frame, in process, against encryption alone;
//! then the spool, which makes a job survive a power cut.

use std::cell::Cell;
use std::io::Write as _;
use std::num::NonZeroUsize;

use anyhow::{Context as _, Result, bail, ensure};
use moai_agent::clock::{BootId, BootInstant};
use moai_agent::onboard::{Command, Request, Topics};
use moai_agent::secrets::OsEntropy;
use moai_agent::spool::{NewJob, Spool, SpoolLimits};
use moai_agent::window::WindowBuffer;
use moai_fhe::{Context, Engine, EvaluationKeys, Inputs, ModelCard, Window};
use moai_transport::frame::FrameKind;
use moai_transport::link::Message;

use super::Run;
use super::measure::{Cost, Series, Stopwatch, compare};
use super::report::Figure;
use super::subject;
use crate::recordings::Trial;

const SECTION: &str = "pipeline";
const PREFIX: &str = "moai";
const TOPIC: &str = "moai/task/arm/input";
/// Jobs that reach the spool together in the measurement under load.
const TOGETHER: u8 = 64;

/// The windows of recordings, as a model wants them.
///
/// # Errors
/// The model wants another shape.
pub fn windows(card: &ModelCard, trials: &[Trial]) -> Result<Vec<Window>> {
    let mut buffer = WindowBuffer::new(card);
    let mut windows = Vec::new();
    for sample in trials.iter().flat_map(|trial| trial.samples) {
        let sample = sample.map(f64::from);
        ensure!(sample.len() == buffer.channels(), "the model wants other channels");
        windows.extend(buffer.push(&sample)?);
    }
    Ok(windows)
}

/// Measures the section.
///
/// # Errors
/// A part of the path refuses the recordings, or the spool's file cannot be written.
pub async fn run(run: &mut Run) -> Result<()> {
    let encrypt = path(run)?;
    share(run, &encrypt)?;
    spool(run).await
}

/// Encryption alone, and the whole path.
struct Path {
    encrypt: Series,
    whole: Series,
}

fn path(run: &mut Run) -> Result<Path> {
    run.step("the agent's path from samples to frame");
    let (engine, model, trials) = (subject::engine()?, subject::grasp()?, subject::trials()?);
    let (card, session) = (model.card(), subject::session(0));
    let messages: Vec<Vec<Vec<u8>>> = trials
        .iter()
        .map(|trial| trial.samples.iter().map(serde_json::to_vec).collect())
        .collect::<Result<_, _>>()?;
    let in_one: Vec<Vec<u8>> = trials
        .iter()
        .map(|trial| serde_json::to_vec(&serde_json::json!({ "samples": trial.samples })))
        .collect::<Result<_, _>>()?;
    let windows = windows(card, &trials)?;
    let levels: Vec<Inputs> = windows.iter().map(|w| card.inputs(w)).collect::<Result<_, _>>()?;
    let body = engine.encrypt(card, &levels[0], &mut OsEntropy)?;
    // Each operation takes the next recording, over and over.
    let turns: [Cell<usize>; 6] = Default::default();
    let next = |turn: &Cell<usize>| turn.replace((turn.get() + 1) % trials.len());
    let signing_key = subject::session_key();
    let encode = |body| {
        let frame = subject::frame(FrameKind::Job, &session, 1, body)?;
        anyhow::Ok(frame.encode_as_session(&signing_key)?)
    };
    let job = |window: &Window| {
        encode(engine.encrypt(card, &card.inputs(window)?, &mut OsEntropy)?).map(|f| f.len())
    };
    let [encrypt, whole, whole_in_one, parsing, features, framing] = compare(
        run.repeats(41, 5),
        [
            &mut || encrypt(&*engine, card, &levels[next(&turns[0])]),
            &mut || job(&window(card, &messages[next(&turns[1])])?),
            &mut || job(&window(card, std::slice::from_ref(&in_one[next(&turns[2])]))?),
            &mut || window(card, &messages[next(&turns[3])]).map(|window| window.samples()),
            &mut || Ok(card.inputs(&windows[next(&turns[4])])?.len()),
            &mut || encode(body.clone()).map(|frame| frame.len()),
        ],
    )?;
    let micros = |series: &Series| series.cpu() * 1e6;
    run.add(Figure::new(SECTION, "encryption alone, per window", micros(&encrypt), "µs"));
    for (name, series) in [
        ("whole path, 15 messages of one sample", &whole),
        ("whole path, one message of 15 samples", &whole_in_one),
    ] {
        let overhead = (series.cpu_over(&encrypt) - 1.0) * 100.0;
        run.add(
            Figure::new(SECTION, name, micros(series), "µs")
                .against("encryption alone", micros(&encrypt), overhead, "% more")
                .goal("≤ 10 % more", overhead <= 10.0),
        );
    }
    for (name, series) in [
        ("… of it 15 messages parsed and windowed", &parsing),
        ("… of it 24 features and their levels", &features),
        ("… of it frame and digest", &framing),
    ] {
        let share = series.cpu_over(&whole) * 100.0;
        run.add(Figure::new(SECTION, name, micros(series), "µs").against(
            "whole path",
            micros(&whole),
            share,
            "% of it",
        ));
    }
    let parts = [&parsing, &features, &framing];
    let alone: f64 = parts.iter().map(|series| micros(series)).sum();
    let share: f64 = parts.iter().map(|series| series.cpu_over(&encrypt) * 100.0).sum();
    run.add(Figure::new(SECTION, "the three parts by themselves, summed", alone, "µs").against(
        "encryption alone",
        micros(&encrypt),
        share,
        "% of it",
    ));
    run.note(
        SECTION,
        "CPU time in this process, without the brokers, the links and the zeroizing allocator \
         of the agent; what the whole path takes beyond the sum of its parts is presumably \
         what the parts do to each other's caches",
    );
    Ok(Path { encrypt, whole })
}

fn encrypt(engine: &dyn Engine, card: &ModelCard, levels: &Inputs) -> Result<usize> {
    Ok(engine.encrypt(card, levels, &mut OsEntropy)?.len())
}

/// The window that these onboard messages make.
fn window(card: &ModelCard, messages: &[Vec<u8>]) -> Result<Window> {
    let mut buffer = WindowBuffer::new(card);
    let width = NonZeroUsize::new(buffer.channels()).context("the model takes no channels")?;
    let topics = Topics::new(PREFIX, &[]);
    let mut complete = None;
    for payload in messages {
        let message = onboard_message(payload);
        let (_, _, request) = Request::of(message, &topics).context("not an onboard topic")?;
        let Ok(Command::Input(samples)) = request.command else { bail!("the input is refused") };
        let Ok(rows) = samples.rows(width) else { bail!("a sample of another width") };
        for sample in rows {
            complete = buffer.push(sample)?.or(complete);
        }
    }
    complete.context("the messages make no window")
}

fn onboard_message(payload: &[u8]) -> Message {
    Message {
        topic: TOPIC.to_owned(),
        payload: payload.to_vec().into(),
        retained: false,
        content_type: None,
        response_topic: None,
        correlation_data: None,
        receipt: None,
    }
}

/// What the path costs of the time to an answer, which is at least the evaluation's.
fn share(run: &mut Run, path: &Path) -> Result<()> {
    run.step("one evaluation, for comparison");
    let (engine, model, pool) = (subject::engine()?, subject::grasp()?, subject::pool(2)?);
    let card = model.card();
    let keys = pool.install(|| {
        let bytes = engine.evaluation_keys()?;
        anyhow::Ok(EvaluationKeys::from_bytes(&Context::tfhe(), &bytes)?)
    })?;
    let body = engine.encrypt(card, &subject::levels(card)?, &mut OsEntropy)?;
    let mut evaluate = || Ok(pool.install(|| model.evaluate(&keys, &body))?.len());
    let [evaluation] = compare(run.repeats(9, 2), [&mut evaluate])?;
    let whole = (path.whole.wall() + evaluation.wall()) * 1e3;
    let extra = (path.whole.wall() - path.encrypt.wall()) * 1e3;
    run.add(Figure::new(SECTION, "the path beyond encryption, in a job", extra, "ms").against(
        "the path and an evaluation on 2 threads",
        whole,
        extra / whole * 100.0,
        "% of it",
    ));
    Ok(())
}

/// Wall time: the spool waits for the disk.
async fn spool(run: &mut Run) -> Result<()> {
    run.step("the spool");
    // Not in /tmp, which may be memory.
    let target = crate::repository().join("target");
    std::fs::create_dir_all(&target)?;
    let scratch = tempfile::tempdir_in(target)?;
    let boot = BootId::current()?;
    let (spool, _) = Spool::open(scratch.path(), SpoolLimits::default(), &boot, 0)?;
    let body = vec![0; subject::grasp()?.card().max_ciphertext_len()];
    let job = NewJob {
        session: subject::session(1),
        era: spool.era(),
        task: "arm".parse()?,
        accepted: BootInstant(0),
        body: body.clone(),
        plain_len: 720,
    };
    let mut log = std::fs::File::create(scratch.path().join("log"))?;
    let [mut bare, mut alone, mut shared] = <[Series; 3]>::default();
    for _ in 0..run.repeats(60, 10) {
        let watch = Stopwatch::start();
        log.write_all(&body)?;
        log.sync_data()?;
        bare.push(watch.cost());

        let watch = Stopwatch::start();
        spool.append(job.clone()).await?;
        alone.push(watch.cost());

        let watch = Stopwatch::start();
        let mut waiting = tokio::task::JoinSet::new();
        for _ in 0..TOGETHER {
            let (spool, job) = (spool.clone(), job.clone());
            waiting.spawn(async move { spool.append(job).await });
        }
        for number in waiting.join_all().await {
            number?;
        }
        let Cost { wall, cpu } = watch.cost();
        shared.push(Cost { wall: wall / f64::from(TOGETHER), cpu: cpu / f64::from(TOGETHER) });
    }
    let millis = |series: &Series| series.wall() * 1e3;
    run.add(Figure::new(SECTION, "spool append, flushed to disk", millis(&alone), "ms").against(
        "write and fdatasync",
        millis(&bare),
        alone.wall_over(&bare),
        "times as long",
    ));
    run.add(
        Figure::new(SECTION, "spool append, 64 jobs at a time, each", millis(&shared), "ms")
            .against("one alone", millis(&alone), alone.wall_over(&shared), "times as fast"),
    );
    run.note(
        SECTION,
        "the spool is measured by the clock: it waits for the disk, and jobs that wait \
         together share one flush",
    );
    Ok(())
}
