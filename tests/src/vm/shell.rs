//! The guest's shell: scripts go in by a port of the machine, their output comes back.
//!
//! Invariant: an answer is that to the request: both carry its number.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// How long an answer may take before the request is made again.
const PATIENCE: Duration = Duration::from_secs(20);

/// What runs scripts in the guest, as root (`tests/guest/usr/local/bin/robot-shell`).
#[derive(Debug)]
pub(super) struct Shell {
    socket: PathBuf,
    connection: Option<BufReader<UnixStream>>,
    requests: u64,
}

/// What a script left.
#[derive(Debug)]
pub(super) struct Answer {
    /// Its exit status.
    pub(super) status: i32,
    /// What it wrote.
    pub(super) output: String,
}

impl Answer {
    /// The output of a script that was successful.
    ///
    /// # Errors
    /// It was not.
    pub(super) fn success(self) -> Result<String> {
        ensure!(self.status == 0, "the script ended with {}:\n{}", self.status, self.output);
        Ok(self.output)
    }
}

impl Shell {
    pub(super) fn new(socket: PathBuf) -> Self {
        Self { socket, connection: None, requests: 0 }
    }

    /// Runs a script, again and again if nobody answers: a guest that starts or ends forgets what it
    /// was asked.
    ///
    /// # Errors
    /// There is no answer within `limit`.
    pub(super) async fn run(&mut self, script: &str, limit: Duration) -> Result<Answer> {
        let asked = async {
            loop {
                if let Ok(Ok(answer)) = timeout(PATIENCE, self.ask(script)).await {
                    return answer;
                }
                // The machine is about to be there.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(limit, asked)
            .await
            .with_context(|| format!("the guest does not answer within {limit:?} to: {script}"))
    }

    /// Runs a script once.
    ///
    /// # Errors
    /// The machine is off, or there is no answer within `limit`.
    pub(super) async fn run_once(&mut self, script: &str, limit: Duration) -> Result<Answer> {
        let asked = timeout(limit, self.ask(script)).await;
        asked.with_context(|| format!("the guest does not answer within {limit:?} to: {script}"))?
    }

    async fn ask(&mut self, script: &str) -> Result<Answer> {
        self.requests += 1;
        let number = self.requests.to_string();
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => BufReader::new(UnixStream::connect(&self.socket).await?),
        };
        let request = format!("{number} {}\n", hex::encode(script));
        connection.get_mut().write_all(request.as_bytes()).await?;
        let connection = self.connection.insert(connection);
        loop {
            let mut line = String::new();
            if connection.read_line(&mut line).await? == 0 {
                self.connection = None;
                bail!("the machine is off");
            }
            // Late answers to requests that were made again come first.
            let mut words = line.trim_end().split(' ');
            if words.next() == Some(&number) {
                let status = words.next().context("an answer has a status")?.parse()?;
                let output = hex::decode(words.next().unwrap_or_default())?;
                return Ok(Answer {
                    status,
                    output: String::from_utf8_lossy(&output).into_owned(),
                });
            }
        }
    }
}
