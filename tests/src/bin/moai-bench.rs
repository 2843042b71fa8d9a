//! `moai-bench`: what the project's parts cost, against stated baselines, as a table and JSON.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use clap::{Parser, ValueEnum as _};
use moai_tests::bench::fleet::Selection;
use moai_tests::bench::{self, Options, Section};

/// Measures the project's parts against baselines in the same run, prints a table and writes
/// JSON. Leave the machine alone meanwhile: ratios bear company, absolute times don't.
#[derive(Parser)]
#[command(name = "moai-bench", max_term_width = 100)]
struct Cli {
    /// Measure these sections only. `fleet` and `footprint` run only if they are named.
    #[arg(value_enum)]
    sections: Vec<Section>,
    /// Measure the fleet: the same as naming that section.
    #[arg(long)]
    fleet: bool,
    /// Robots of a fleet instead of 1, 10, 100, 300 and 1,000; may be repeated.
    #[arg(long, value_name = "NUMBER")]
    robots: Vec<usize>,
    /// Milliseconds from a robot's window to its next, in a fleet.
    #[arg(long, value_name = "MS")]
    period: Option<u64>,
    /// Seconds in which a fleet has windows.
    #[arg(long, value_name = "S")]
    time: Option<u64>,
    /// Fewer repetitions.
    #[arg(long)]
    quick: bool,
    /// Where the JSON goes instead of target/bench/bench.json.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let Cli { mut sections, fleet, robots, period, time, quick, json } = Cli::parse();
    let (variable, value) = moai_tpm::TSS_LOG_ENVIRONMENT;
    if std::env::var_os(variable).is_none() {
        // The environment is set where a process is started, so it is started again.
        let mut again = Command::new(std::env::current_exe()?);
        return Err(again.args(std::env::args_os().skip(1)).env(variable, value).exec().into());
    }
    if fleet && !sections.contains(&Section::Fleet) {
        sections.push(Section::Fleet);
    }
    if sections.is_empty() {
        let all = Section::value_variants().iter().copied();
        sections = all.filter(|it| !matches!(it, Section::Fleet | Section::Footprint)).collect();
    }
    let selection = Selection {
        robots,
        period: period.map(Duration::from_millis),
        time: time.map(Duration::from_secs),
    };
    let json = json.unwrap_or_else(|| moai_tests::repository().join("target/bench/bench.json"));
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(bench::run(Options { sections, quick, json, fleet: selection }))
}
