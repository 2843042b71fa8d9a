//! Who renews certificates: a command that takes a request and prints a chain.
//!
//! Invariants:
//! - a command that hangs, talks too much or fails is an error that names it, and is not left
//!   running;
//! - what it prints is not believed here: the certificate store checks it.

use std::process::Stdio;
use std::time::Duration;

use moai_transport::tls::utc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use super::{IdentityError, file};

/// How long a renewal command may run.
const COMMAND_DEADLINE: Duration = Duration::from_mins(2);
/// How much of a failed command's standard error a message quotes.
const MAX_QUOTE_LEN: u64 = 512;

/// Why there is no new certificate. It is tried again; the message says what a person can do.
#[derive(Debug, thiserror::Error)]
pub enum RenewalError {
    /// The command does not start, or its pipes break.
    #[error("the renewal command {program} does not run: {source}")]
    Run {
        /// The command.
        program: String,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The command takes too long.
    #[error("the renewal command {program} did not end within {} s", after.as_secs())]
    Deadline {
        /// The command.
        program: String,
        /// How long it was given.
        after: Duration,
    },
    /// The command fails.
    #[error("the renewal command {program} ended with {status}: {stderr}")]
    Failed {
        /// The command.
        program: String,
        /// Its exit status.
        status: std::process::ExitStatus,
        /// The end of what it said.
        stderr: String,
    },
    /// The command prints more than a chain of certificates.
    #[error("the renewal command {program} printed more than {} bytes", file::MAX_LEN)]
    TooLong {
        /// The command.
        program: String,
    },
    /// The new certificate is not better than the old one.
    #[error("the new certificate ends on {}, not later than the present one", utc(*not_after))]
    NotLater {
        /// When the new one ends.
        not_after: i64,
    },
    /// The new certificate, or the request for it, is not usable.
    #[error("{0}")]
    Identity(#[from] IdentityError),
}

/// Where new certificates come from.
pub trait Issuer: Send + Sync {
    /// The chain (PEM, leaf first) that answers a certificate request (PEM).
    fn issue(&self, request: String) -> impl Future<Output = Result<Vec<u8>, RenewalError>> + Send;

    /// Whether asking makes sense at all.
    fn exists(&self) -> bool;
}

/// The command of `uplink.renew_command`.
#[derive(Debug, Clone)]
pub struct RenewCommand {
    words: Vec<String>,
    deadline: Duration,
}

impl RenewCommand {
    /// Program and arguments; empty if there is no command.
    #[must_use]
    pub fn new(words: Vec<String>) -> Self {
        Self { words, deadline: COMMAND_DEADLINE }
    }
}

impl Issuer for RenewCommand {
    async fn issue(&self, request: String) -> Result<Vec<u8>, RenewalError> {
        let program = self.words.first().cloned().unwrap_or_default();
        let failed = |source| RenewalError::Run { program: program.clone(), source };
        let mut child = Command::new(&program)
            .args(self.words.iter().skip(1))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let (mut stdin, stdout, stderr) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let talk = async {
            let ask = async move {
                if let Some(stdin) = &mut stdin {
                    // Whoever has read enough may close the pipe; what it prints decides.
                    let _ = stdin.write_all(request.as_bytes()).await;
                }
            };
            // What is beyond a cap is read too, so that the command can end.
            let (stdout, stderr, ()) =
                tokio::join!(head(stdout, file::MAX_LEN + 1), head(stderr, MAX_QUOTE_LEN), ask);
            Ok((stdout?, stderr?, child.wait().await?))
        };
        let after = self.deadline;
        let (stdout, stderr, status) = tokio::time::timeout(after, talk)
            .await
            .map_err(|_| RenewalError::Deadline { program: program.clone(), after })?
            .map_err(failed)?;
        if !status.success() {
            let stderr = String::from_utf8_lossy(&stderr).trim().to_owned();
            return Err(RenewalError::Failed { program, status, stderr });
        }
        if stdout.len() as u64 > file::MAX_LEN {
            return Err(RenewalError::TooLong { program });
        }
        Ok(stdout)
    }

    fn exists(&self) -> bool {
        !self.words.is_empty()
    }
}

/// Reads to the end and keeps the first `max` bytes.
async fn head(pipe: Option<impl AsyncRead + Unpin>, max: u64) -> std::io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    if let Some(mut pipe) = pipe {
        (&mut pipe).take(max).read_to_end(&mut kept).await?;
        tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await?;
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> RenewCommand {
        RenewCommand::new(["sh", "-c", script].map(ToOwned::to_owned).to_vec())
    }

    #[tokio::test]
    async fn a_command_gets_the_request_and_its_output_is_the_answer() {
        let request = "request\n".repeat(20_000);
        let answer = shell("wc -c").issue(request.clone()).await.unwrap();
        assert_eq!(String::from_utf8(answer).unwrap().trim(), request.len().to_string());
        // Whoever does not want to read need not.
        assert_eq!(shell("printf chain").issue(request).await.unwrap(), b"chain");
    }

    #[tokio::test]
    async fn a_command_that_fails_is_quoted() {
        let error = shell("echo no such robot >&2; exit 3").issue(String::new()).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains("exit status: 3") && text.contains("no such robot"), "{text}");
        let noise = "head -c 1000000 /dev/zero | tr '\\0' x";
        let error = shell(noise).issue(String::new()).await.unwrap_err();
        assert!(matches!(error, RenewalError::TooLong { .. }), "{error}");
        let error = shell(&format!("{noise} >&2; exit 1")).issue(String::new()).await.unwrap_err();
        assert!(error.to_string().len() < 1000, "{error}");
        let missing = RenewCommand::new(vec!["/nonesuch/renew".to_owned()]);
        let error = missing.issue(String::new()).await.unwrap_err();
        assert!(matches!(error, RenewalError::Run { .. }), "{error}");
        let deadline = Duration::from_millis(50);
        let hanging = RenewCommand { deadline, ..shell("exec sleep 1000") };
        let error = hanging.issue(String::new()).await.unwrap_err();
        assert!(matches!(error, RenewalError::Deadline { .. }), "{error}");
    }
}
