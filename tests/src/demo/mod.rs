//! The demo: every part as a real process, fed with recorded grasps.
//!
//! Invariants:
//! - nothing is left running, however it ends: by itself, by a signal or by an error;
//! - it succeeds only if every encrypted decision is the plaintext model's, or one that this model
//!   cannot tell from it within the noise that CKKS adds to what it releases.

pub mod console;
pub mod naive;
pub mod options;
pub mod play;
pub mod report;
pub mod selection;
pub mod site;
pub mod statistics;
pub mod summary;
pub mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::console::Steps;
use self::options::Options;
use self::play::Job;
use self::selection::Grasp;
use self::site::{Opening, STEPS, Site};
use self::summary::Summary;
use crate::reference::{Reference, Scheme};

/// Some encrypted decision was not the plaintext model's.
const DISAGREEMENT: u8 = 1;
/// Something failed.
const FAILURE: u8 = 2;

/// How a run that did not fail ended.
enum End {
    Done { agreed: bool },
    Interrupted(SignalKind),
}

/// Runs the demo as the command line says.
///
/// Exit codes: 0 every decision agrees, 1 some do not, 2 something failed or the command line is
/// wrong, 129, 130 and 143 ended by SIGHUP, SIGINT and SIGTERM.
pub async fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options).await {
        Ok(End::Done { agreed: true }) => ExitCode::SUCCESS,
        Ok(End::Done { agreed: false }) => ExitCode::from(DISAGREEMENT),
        Ok(End::Interrupted(kind)) => {
            eprintln!("Interrupted; everything is stopped.");
            ExitCode::from(u8::try_from(128 + kind.as_raw_value()).unwrap_or(FAILURE))
        }
        Err(error) => {
            eprintln!("\nerror: {error}");
            for cause in error.chain().skip(1) {
                eprintln!("  because {cause}");
            }
            if !options.keep {
                eprintln!("Everything is stopped. To keep all logs, run it again with --keep.");
            }
            ExitCode::from(FAILURE)
        }
    }
}

async fn run(options: &Options) -> Result<End> {
    let mut interrupts = Interrupts::new()?;
    let scheme = options.scheme;
    let model = Reference::load(scheme, options.model.model(scheme)?)?;
    let grasps = selection::load()?;
    let wanted = if options.all { grasps.len() } else { options.trials.into() };
    let grasps = selection::stratified(&grasps, wanted);
    println!(
        "A robot asks a model on a server about {} recorded grasps: {}?\n\
         The robot encrypts with {scheme}, the server computes on ciphertext, the robot decrypts.\n\
         Every part is a real process on this machine, and all of them are stopped at the end.\n",
        grasps.len(),
        alternatives(model.card().labels())
    );
    let scratch = site::scratch(options.keep)?;
    let directory = options.keep.then(|| scratch.path().to_owned());
    let outcome = perform(scratch, scheme, &model, grasps, &mut interrupts).await;
    if let Some(directory) = directory {
        println!("  Configurations, state and logs are kept in {}", directory.display());
    }
    match outcome? {
        Ok((opening, jobs)) => conclude(model, opening, jobs).await,
        Err(kind) => Ok(End::Interrupted(kind)),
    }
}

/// Starts the processes, plays the grasps and stops the processes; or stops early at a signal.
async fn perform(
    scratch: tempfile::TempDir,
    scheme: Scheme,
    model: &Reference,
    grasps: Vec<Grasp>,
    interrupts: &mut Interrupts,
) -> Result<Result<(Opening, Vec<Job>), SignalKind>> {
    let mut steps = Steps::new(STEPS);
    let site = tokio::select! {
        site = Site::start(scratch, scheme, &mut steps) => site?,
        kind = interrupts.next() => return Ok(Err(kind)),
    };
    let played = tokio::select! {
        played = play_all(&site, model, grasps, &mut steps) => played.map(Ok),
        kind = interrupts.next() => Ok(Err(kind)),
    };
    let stopped = tokio::select! {
        stopped = site.stop() => stopped,
        // Whoever insists gets it at once: what is dropped is killed.
        kind = interrupts.next() => return Ok(Err(kind)),
    };
    let played = played?;
    stopped.context("the processes do not stop by themselves and were killed")?;
    Ok(played)
}

async fn play_all(
    site: &Site,
    model: &Reference,
    grasps: Vec<Grasp>,
    steps: &mut Steps,
) -> Result<(Opening, Vec<Job>)> {
    let opening = site.open(model.card().id(), steps).await?;
    println!("\n  Playing {} recordings, sample by sample, one job at a time.", grasps.len());
    Ok((opening, play::play(site, model, grasps).await?))
}

/// Prints the table, writes the report, gives the verdict.
async fn conclude(model: Reference, opening: Opening, jobs: Vec<Job>) -> Result<End> {
    let (summary, jobs) = tokio::task::spawn_blocking(move || {
        Summary::new(&model, opening, &jobs).map(|summary| (summary, jobs))
    })
    .await??;
    println!("\n{}", table::text(&summary));
    let path = report_path();
    report::write(&path, &summary, &jobs)
        .with_context(|| format!("cannot write {}", path.display()))?;
    println!("  Report: {}", path.display());
    let disagreements = table::disagreements(&jobs);
    if !disagreements.is_empty() {
        eprintln!("\nEncrypted and plaintext model disagree:\n{disagreements}");
    }
    Ok(End::Done { agreed: disagreements.is_empty() })
}

/// `a, b or c`.
fn alternatives(labels: &[String]) -> String {
    match labels {
        [first @ .., last] if !first.is_empty() => format!("{} or {last}", first.join(", ")),
        _ => labels.join(", "),
    }
}

/// `demo/report.html` in cargo's target directory.
fn report_path() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| crate::repository().join("target"), PathBuf::from);
    target.join("demo/report.html")
}

/// Ctrl-C, a closed terminal and SIGTERM. From its creation on, none ends the process by itself.
struct Interrupts {
    interrupt: Signal,
    hangup: Signal,
    terminate: Signal,
}

impl Interrupts {
    fn new() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) -> SignalKind {
        tokio::select! {
            _ = self.interrupt.recv() => SignalKind::interrupt(),
            _ = self.hangup.recv() => SignalKind::hangup(),
            _ = self.terminate.recv() => SignalKind::terminate(),
        }
    }
}
