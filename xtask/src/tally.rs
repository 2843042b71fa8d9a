//! Counts tests over several runners, whose output passes through.

use std::fmt;
use std::io::{BufRead, BufReader, IsTerminal, Read, Write};
use std::ops::AddAssign;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::cargo::{announce, line};

/// How many tests ran.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

/// Runs cargo-nextest, which reports on standard error.
///
/// # Errors
/// It failed for another reason than failing tests.
pub(crate) fn nextest(command: &mut Command) -> Result<Tally> {
    announce(command);
    if std::io::stderr().is_terminal() {
        command.env("CARGO_TERM_COLOR", "always");
    }
    let mut child = command.stderr(Stdio::piped()).spawn().context("cannot start cargo nextest")?;
    let tally = pass_through(child.stderr.take(), std::io::stderr(), nextest_line);
    conclude(command, &mut child, tally)
}

/// Runs `cargo test`, which reports on standard output.
///
/// # Errors
/// It failed for another reason than failing tests.
pub(crate) fn libtest(command: &mut Command) -> Result<Tally> {
    announce(command);
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot start cargo test")?;
    let tally = pass_through(child.stdout.take(), std::io::stdout(), libtest_line);
    conclude(command, &mut child, tally)
}

fn conclude(command: &Command, child: &mut std::process::Child, tally: Tally) -> Result<Tally> {
    let status = child.wait()?;
    if !status.success() && tally.failed == 0 {
        bail!("`{}` failed ({status})", line(command));
    }
    Ok(tally)
}

fn pass_through(
    pipe: Option<impl Read>,
    mut terminal: impl Write,
    count: fn(&str) -> Option<Tally>,
) -> Tally {
    let mut total = Tally::default();
    let Some(pipe) = pipe else { return total };
    let mut reader = BufReader::new(pipe);
    let mut line = Vec::new();
    while matches!(reader.read_until(b'\n', &mut line), Ok(length) if length > 0) {
        // A terminal that has gone away must not stop the tests.
        let _ = terminal.write_all(&line);
        total += count(&plain(&String::from_utf8_lossy(&line))).unwrap_or_default();
        line.clear();
    }
    total
}

/// `Summary [ 1.2s] 9 tests run: 6 passed (1 slow), 1 failed, 2 timed out, 3 skipped`
fn nextest_line(line: &str) -> Option<Tally> {
    let (_, counts) = line.trim().strip_prefix("Summary [")?.split_once(" run: ")?;
    Some(Tally {
        passed: number_before(counts, " passed"),
        failed: [" failed", " timed out", " exec failed"]
            .map(|how| number_before(counts, how))
            .iter()
            .sum(),
    })
}

/// `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s`
fn libtest_line(line: &str) -> Option<Tally> {
    let counts = line.trim().strip_prefix("test result: ")?;
    Some(Tally {
        passed: number_before(counts, " passed"),
        failed: number_before(counts, " failed"),
    })
}

fn number_before(text: &str, word: &str) -> u64 {
    text.split([',', ';', '('])
        .filter_map(|part| part.split_once(word)?.0.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

/// The text without colours (ECMA-48, 8.3.117 SGR).
fn plain(text: &str) -> String {
    let mut parts = text.split("\u{1b}[");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + part.split_once('m').map_or("", |(_, rest)| rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_of_nextest_are_counted() {
        let line = "\u{1b}[31;1m     Summary\u{1b}[0m [   0.601s] \u{1b}[1m9\u{1b}[0m tests run: \
                    \u{1b}[1m6\u{1b}[0m \u{1b}[32;1mpassed\u{1b}[0m (1 slow), 1 failed, 2 timed out, \
                    3 skipped\n";
        assert_eq!(nextest_line(&plain(line)), Some(Tally { passed: 6, failed: 3 }));
        let one = "     Summary [   0.601s] 1 test run: 1 passed, 0 skipped";
        assert_eq!(nextest_line(one), Some(Tally { passed: 1, failed: 0 }));
        assert_eq!(nextest_line("        PASS [   0.063s] ( 1/22) a_test_of_1 passed"), None);
    }

    #[test]
    fn summaries_of_libtest_are_counted_and_added_up() {
        let output = "running 2 tests\n\
                      test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 4 filtered out\n\
                      test result: FAILED. 1 passed; 2 failed; 0 ignored; finished in 0.10s\n";
        let mut shown = Vec::new();
        let tally = pass_through(Some(output.as_bytes()), &mut shown, libtest_line);
        assert_eq!(tally, Tally { passed: 4, failed: 2 });
        assert_eq!(tally.to_string(), "4 passed, 2 failed");
        assert_eq!(shown, output.as_bytes());
    }
}
