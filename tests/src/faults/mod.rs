//! The fault suite: each row runs the whole system under load, breaks something in the middle, and
//! counts what became of every window.
//!
//! Invariants:
//! - each row has a world of its own, and is over within two minutes, whatever happens;
//! - what cannot be done on this machine is skipped, said, and counted.

pub mod fault;
pub mod isolation;
pub mod ledger;
pub mod load;
pub mod row;

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Result, bail};

use self::isolation::Isolation;
use self::row::{ROWS, Report, Row};

/// How long a row may take, opening included.
const LIMIT: Duration = Duration::from_mins(4);

/// How many rows ended how.
#[derive(Debug, Default, Clone, Copy)]
struct Tally {
    passed: usize,
    failed: usize,
    skipped: usize,
}

/// Prints the names of all rows, and what happens in each.
pub fn list() {
    for Row { name, what, .. } in ROWS {
        println!("{name:<20} {what}");
    }
}

/// Runs all rows, or those named.
///
/// # Errors
/// There is no such row, or a row failed.
pub async fn run(isolation: Isolation, only: &[String]) -> Result<()> {
    if let Some(unknown) = only.iter().find(|name| Row::named(name).is_none()) {
        bail!("there is no row {unknown:?}; --list names them");
    }
    println!("{HEADER}");
    let mut tally = Tally::default();
    for row in ROWS.iter().filter(|row| only.is_empty() || only.iter().any(|n| n == row.name)) {
        if let Some(obstacle) = row.obstacle(isolation) {
            println!("{:<20} skipped: {obstacle}", row.name);
            tally.skipped += 1;
            continue;
        }
        let outcome = match tokio::time::timeout(LIMIT, row.run()).await {
            Ok(Ok(report)) => {
                println!("{}", line(row, &report));
                row.complaint(&report)
            }
            Ok(Err(error)) => Some(format!("{error:#}")),
            Err(_) => Some(format!("not over within {LIMIT:?}")),
        };
        match outcome {
            None => tally.passed += 1,
            Some(complaint) => {
                println!("{:<20} FAILED: {complaint}", row.name);
                tally.failed += 1;
            }
        }
    }
    let Tally { passed, failed, skipped } = tally;
    println!("\n{passed} passed, {failed} failed, {skipped} skipped");
    if failed > 0 {
        bail!("{failed} rows failed");
    }
    Ok(())
}

const HEADER: &str = "row                    sent answered refused untaken  lost doubled wrong \
                      recovery  slowest";

fn line(row: &Row, report: &Report) -> String {
    let Report { account: a, recovery, lost_by_broker } = report;
    let mut line = format!(
        "{:<20} {:>6} {:>8} {:>7} {:>7} {:>5} {:>7} {:>5} {:>6.1} s {:>6.1} s",
        row.name,
        a.sent,
        a.answered,
        a.refused,
        a.untaken,
        a.lost,
        a.doubled,
        a.wrong,
        recovery.as_secs_f64(),
        a.slowest.as_secs_f64(),
    );
    if *lost_by_broker > 0 {
        // Writing to a String cannot fail.
        let _ = write!(line, "  ({lost_by_broker} answers lost with the broker)");
    }
    line
}
