//! `moai-bench`: what the project's parts cost, against stated baselines, as a table and JSON.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use clap::{Parser, ValueEnum as _};
use moai_tests::bench::{self, Options, Section};

/// Measures the project's parts against baselines in the same run, prints a table and writes
/// JSON. Leave the machine alone meanwhile: ratios bear company, absolute times don't.
#[derive(Parser)]
#[command(name = "moai-bench", max_term_width = 100)]
struct Cli {
    /// Measure these sections only. `fleet` runs only if it is named.
    #[arg(value_enum)]
    sections: Vec<Section>,
    /// Measure the fleet: the same as naming that section.
    #[arg(long)]
    fleet: bool,
    /// Fewer repetitions.
    #[arg(long)]
    quick: bool,
    /// Where the JSON goes instead of target/bench/bench.json.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let Cli { mut sections, fleet, quick, json } = Cli::parse();
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
        sections = all.filter(|section| *section != Section::Fleet).collect();
    }
    let json = json.unwrap_or_else(|| moai_tests::repository().join("target/bench/bench.json"));
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(bench::run(Options { sections, quick, json }))
}
