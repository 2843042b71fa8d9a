//! The control socket: a Unix socket that answers every connection with the agent's status.
//!
//! Invariants:
//! - only the agent's user and group may connect (mode 0660);
//! - a client that does not read holds up nobody.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use crate::status::AgentStatus;

const PATIENCE: Duration = Duration::from_secs(2);
const MAX_STATUS_LEN: u64 = 1024 * 1024;

/// Why the control socket cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The agent cannot make it.
    #[error("cannot listen on {}: {source}; check that the directory exists and is the agent's", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// Another agent answers there.
    #[error("{} is in use: another moai-agent runs with this configuration", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// The agent does not answer.
    #[error("no agent answers on {}: {source}; is it running? (systemctl status moai-agent)", path.display())]
    NotRunning {
        /// The socket.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The agent's answer is not a status.
    #[error("the agent's answer is not a status ({0}); are client and agent of one version?")]
    Answer(#[from] serde_json::Error),
}

/// The listening socket; its file goes away with it.
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ControlSocket {
    /// Listens on `path`, replacing a dead agent's socket.
    ///
    /// # Errors
    /// The directory is not writable, or a living agent has it.
    pub async fn listen(path: &Path) -> Result<Self, ControlError> {
        let listen_error = |source| ControlError::Listen { path: path.to_owned(), source };
        if UnixStream::connect(path).await.is_ok() {
            return Err(ControlError::InUse { path: path.to_owned() });
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(listen_error(error));
            }
            _ => {}
        }
        let listener = UnixListener::bind(path).map_err(listen_error)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))
            .map_err(listen_error)?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Answers until the agent stops.
    pub async fn serve(
        self,
        status: Arc<dyn Fn() -> AgentStatus + Send + Sync>,
        stop: CancellationToken,
    ) {
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            let Ok((mut stream, _)) = accepted else { continue };
            let status = Arc::clone(&status);
            tokio::spawn(async move {
                let Ok(text) = serde_json::to_vec(&status()) else { return };
                // A client that went away or stalls is its own problem.
                let _ = tokio::time::timeout(PATIENCE, stream.write_all(&text)).await;
            });
        }
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // A leftover is replaced at the next start.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Asks the running agent for its status.
///
/// # Errors
/// No agent answers.
pub async fn ask(path: &Path) -> Result<AgentStatus, ControlError> {
    let not_running = |source| ControlError::NotRunning { path: path.to_owned(), source };
    let stream = UnixStream::connect(path).await.map_err(not_running)?;
    let mut text = Vec::new();
    let read = stream.take(MAX_STATUS_LEN);
    tokio::pin!(read);
    tokio::time::timeout(PATIENCE, read.read_to_end(&mut text))
        .await
        .map_err(|_| not_running(std::io::ErrorKind::TimedOut.into()))?
        .map_err(not_running)?;
    Ok(serde_json::from_slice(&text)?)
}
