//! The benches: `cargo xtask bench`.
//!
//! Invariants:
//! - every figure is measured in the run that shows it, and so is its baseline;
//! - no time is ever asserted: a slow machine gets a table, not a failure;
//! - nothing is left behind but the JSON.

pub mod encrypt;
pub mod fleet;
pub mod footprint;
pub mod handshake;
pub mod jobs;
pub mod keys;
pub mod measure;
pub mod memory;
pub mod pipeline;
pub mod plain_mqtt;
pub mod report;
pub mod sessions;
pub mod stream;
pub mod subject;
mod tpm_tools;
pub mod unseal;
pub mod upload;

use std::io::IsTerminal as _;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};

use report::{Conditions, Figure, Report};

/// A part of the benches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Section {
    /// Packed encryption against tfhe's own ways to encrypt.
    Encrypt,
    /// The agent's path from samples to frame against encryption alone, and the spool.
    Pipeline,
    /// Making, sizing and unpacking keys.
    Keys,
    /// From opening a task to its active session, with keys made then and made ahead.
    Sessions,
    /// A key through a broker against bare rumqttc.
    Upload,
    /// Unsealing the root secret on a software TPM against tpm2-tools and systemd-creds.
    Unseal,
    /// TLS handshakes with the identity key in a software TPM against one in memory.
    Handshake,
    /// Answers end to end, with real processes.
    Jobs,
    /// Resident memory of agent and server.
    Memory,
    /// A kilohertz of samples for a minute, each window answered once.
    Stream,
    /// Disk, memory and start of the agent as it is released; runs by `cargo xtask footprint`.
    Footprint,
    /// From 1 to 1,000 robots on one broker and one server; runs only if named.
    Fleet,
}

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// The parts, in this order.
    pub sections: Vec<Section>,
    /// Fewer repetitions.
    pub quick: bool,
    /// Where the JSON goes.
    pub json: PathBuf,
    /// What of the fleet.
    pub fleet: fleet::Selection,
}

/// What a section writes to.
#[derive(Debug)]
pub struct Run {
    report: Report,
    quick: bool,
    progress: ProgressBar,
}

impl Run {
    /// The number of repetitions: `full`, or `quick` in a quick run.
    #[must_use]
    pub fn repeats(&self, full: usize, quick: usize) -> usize {
        if self.quick { quick } else { full }
    }

    /// Adds a figure to the report.
    pub fn add(&mut self, figure: Figure) {
        self.report.add(figure);
    }

    /// Adds what one has to know to read a section's figures.
    pub fn note(&mut self, section: &'static str, text: impl Into<String>) {
        self.report.note(section, text);
    }

    /// Tells the person who waits what is measured now.
    pub fn step(&self, what: &str) {
        if self.progress.is_hidden() {
            eprintln!("{what}");
        }
        // Drawn once and not by a thread, which would take CPU time from what is measured.
        self.progress.set_message(what.to_owned());
        self.progress.tick();
    }
}

/// Measures, prints the table and writes the JSON.
///
/// # Errors
/// Something that is to be measured does not work, or the JSON cannot be written.
pub async fn run(options: Options) -> Result<()> {
    let Options { sections, quick, json, fleet } = options;
    let progress = ProgressBar::new(sections.len().try_into()?).with_style(
        ProgressStyle::with_template("[{elapsed_precise}] {bar:24} {pos}/{len} {msg}")?,
    );
    if !std::io::stderr().is_terminal() {
        progress.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    let report = Report::new(Conditions::now(quick));
    let mut run = Run { report, quick, progress };
    for section in sections {
        measure(section, &mut run, &fleet).await.with_context(|| {
            format!("the section {section:?} cannot be measured").to_lowercase()
        })?;
        run.progress.inc(1);
    }
    run.progress.finish_and_clear();
    print!("{}", run.report);
    run.report.write(&json)?;
    println!("JSON: {}", json.display());
    Ok(())
}

async fn measure(section: Section, run: &mut Run, fleet: &fleet::Selection) -> Result<()> {
    match section {
        Section::Encrypt => encrypt::run(run),
        Section::Pipeline => pipeline::run(run).await,
        Section::Keys => keys::run(run),
        Section::Sessions => sessions::run(run).await,
        Section::Upload => upload::run(run).await,
        Section::Unseal => unseal::run(run).await,
        Section::Handshake => handshake::run(run).await,
        Section::Jobs => jobs::run(run).await,
        Section::Memory => memory::run(run).await,
        Section::Stream => stream::run(run).await,
        Section::Footprint => footprint::run(run).await,
        Section::Fleet => fleet::run(run, fleet).await,
    }
}
