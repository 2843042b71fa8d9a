//! `moai-faults`: the whole system under load, with one fault after the other.

use clap::Parser;
use moai_tests::faults::isolation::Isolation;

/// Runs robot, brokers and server under load, breaks something in the middle, and counts what became
/// of every window. As root it has a network and mounts of its own; nothing else is touched.
#[derive(Parser)]
#[command(name = "moai-faults", max_term_width = 100)]
struct Cli {
    /// Only name the rows.
    #[arg(long)]
    list: bool,
    /// Run this row; may be repeated.
    #[arg(long, value_name = "ROW")]
    only: Vec<String>,
}

fn main() -> anyhow::Result<()> {
    let Cli { list, only } = Cli::parse();
    if list {
        moai_tests::faults::list();
        return Ok(());
    }
    let isolation = Isolation::enter()?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(moai_tests::faults::run(isolation, &only))
}
