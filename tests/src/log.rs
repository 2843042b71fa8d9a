//! What a process says, and how it ended.
//!
//! Invariants:
//! - every line is in its file and in memory before the exit is announced;
//! - a [`Log`] outlives its process.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use tokio::sync::watch;

const TAIL_LINES: usize = 20;

#[derive(Debug, Default)]
struct Progress {
    lines: Vec<String>,
    exit: Option<ExitStatus>,
}

/// The supervisor's end of a [`Log`].
#[derive(Debug, Clone)]
pub(crate) struct Recorder {
    progress: watch::Sender<Progress>,
}

impl Recorder {
    /// Copies a child's output, line by line, until the child closes it.
    pub(crate) fn copy(&self, pipe: impl Read, mut file: File) {
        let mut reader = BufReader::new(pipe);
        let mut line = Vec::new();
        while matches!(reader.read_until(b'\n', &mut line), Ok(length) if length > 0) {
            // A full disk must not stop the child; the lines in memory remain.
            let _ = file.write_all(&line);
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            self.progress.send_modify(|progress| progress.lines.push(text));
            line.clear();
        }
    }

    /// Announces the end.
    pub(crate) fn ended(&self, status: ExitStatus) {
        self.progress.send_modify(|progress| progress.exit = Some(status));
    }
}

/// The lines a process wrote, to standard output and standard error alike. Outlives the process.
#[derive(Debug, Clone)]
pub struct Log {
    name: String,
    progress: watch::Receiver<Progress>,
}

impl Log {
    /// An empty log and the end to write to.
    pub(crate) fn new(name: &str) -> (Self, Recorder) {
        let (sender, progress) = watch::channel(Progress::default());
        (Self { name: name.to_owned(), progress }, Recorder { progress: sender })
    }

    /// The process's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All lines so far.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.progress.borrow().lines.clone()
    }

    /// All text so far.
    #[must_use]
    pub fn text(&self) -> String {
        self.progress.borrow().lines.join("\n")
    }

    /// Whether a line contains `pattern`.
    #[must_use]
    pub fn contains(&self, pattern: &str) -> bool {
        self.progress.borrow().lines.iter().any(|line| line.contains(pattern))
    }

    /// The last lines, indented under the process's name, for error messages.
    #[must_use]
    pub fn tail(&self) -> String {
        let progress = self.progress.borrow();
        let skipped = progress.lines.len().saturating_sub(TAIL_LINES);
        let state = match progress.exit {
            Some(status) => format!("ended: {status}"),
            None => "running".to_owned(),
        };
        let mut text = format!("--- last lines of {} ({state})", self.name);
        for line in progress.lines.iter().skip(skipped) {
            text.push_str("\n    ");
            text.push_str(line);
        }
        text
    }

    /// Waits for a line that contains `pattern`, from the start of the process on.
    ///
    /// # Errors
    /// No such line within `limit`, or the process ended without one.
    pub async fn wait_for(&self, pattern: &str, limit: Duration) -> Result<String> {
        self.wait_for_nth(1, pattern, limit).await
    }

    /// Waits until so many lines contain `pattern`; returns the last of them.
    ///
    /// # Errors
    /// As for [`Self::wait_for`].
    pub async fn wait_for_nth(&self, n: usize, pattern: &str, limit: Duration) -> Result<String> {
        let mut progress = self.progress.clone();
        let (mut next, mut missing) = (0, n);
        let found = async {
            loop {
                let ended = {
                    let seen = progress.borrow_and_update();
                    for line in seen.lines.iter().skip(next).filter(|line| line.contains(pattern)) {
                        missing = missing.saturating_sub(1);
                        if missing == 0 {
                            return Some(line.clone());
                        }
                    }
                    next = seen.lines.len();
                    seen.exit.is_some()
                };
                if ended || progress.changed().await.is_err() {
                    return None;
                }
            }
        };
        match tokio::time::timeout(limit, found).await {
            Ok(Some(line)) => Ok(line),
            Ok(None) => bail!("{} ended without writing \"{pattern}\"\n{}", self.name, self.tail()),
            Err(_) => {
                bail!("{} did not write \"{pattern}\" within {limit:?}\n{}", self.name, self.tail())
            }
        }
    }

    /// How the process ended, if it has.
    #[must_use]
    pub fn exit(&self) -> Option<ExitStatus> {
        self.progress.borrow().exit
    }

    /// Waits for the end of the process.
    ///
    /// # Errors
    /// It is still running after `limit`.
    pub async fn wait_for_exit(&self, limit: Duration) -> Result<ExitStatus> {
        let mut progress = self.progress.clone();
        let ended = progress.wait_for(|seen| seen.exit.is_some());
        match tokio::time::timeout(limit, ended).await {
            Ok(Ok(seen)) => seen.exit.context("the process has no exit status"),
            Ok(Err(_)) => Err(anyhow!("nobody supervises {} any more", self.name)),
            Err(_) => bail!("{} did not end within {limit:?}\n{}", self.name, self.tail()),
        }
    }
}
