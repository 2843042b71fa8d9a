//! `moai-bench`: what the project's parts cost, against stated baselines, as a table and JSON.

use std::path::PathBuf;

use clap::{Parser, ValueEnum as _};
use moai_tests::bench::{self, Options, Section};

/// Measures the project's parts against baselines in the same run, prints a table and writes
/// JSON. Leave the machine alone meanwhile: ratios bear company, absolute times don't.
#[derive(Parser)]
#[command(name = "moai-bench", max_term_width = 100)]
struct Cli {
    /// Measure these sections only.
    #[arg(value_enum)]
    sections: Vec<Section>,
    /// Fewer repetitions.
    #[arg(long)]
    quick: bool,
    /// Where the JSON goes instead of target/bench/bench.json.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Cli { mut sections, quick, json } = Cli::parse();
    if sections.is_empty() {
        sections = Section::value_variants().to_vec();
    }
    let json = json.unwrap_or_else(|| moai_tests::repository().join("target/bench/bench.json"));
    bench::run(Options { sections, quick, json }).await
}
