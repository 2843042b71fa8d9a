//! The control socket: a Unix socket where people and programs of this robot ask the agent.
//!
//! A connection carries one request and one reply, each a line of JSON: `{"request": "status"}`,
//! `{"request": "rotate-task", "task": "arm"}` and so on; `{"status": …}`, `{"ordered": …}` and so on,
//! or `{"refused": …}`; `Request` and `Reply` have all of them.
//!
//! Invariants:
//! - only the agent's user and group may connect (mode 0660);
//! - requests are capped in length and time and connections in number: a client that sends nothing
//!   or reads nothing holds up the others for seconds at most;
//! - it answers before the root secret is at hand.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use moai_transport::ids::{SessionId, TaskId};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::audit::AuditReport;
use crate::custody::Rotated;
use crate::emergency::EmergencyReport;
use crate::reload::Reloaded;
use crate::status::AgentStatus;

/// How long a client may take to send its request, and to read the reply.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a client waits for a rotation: TPMs take seconds to make a key.
const ROTATION_PATIENCE: Duration = Duration::from_mins(2);
/// How long a client waits for the configuration to be read and followed.
const RELOAD_PATIENCE: Duration = Duration::from_secs(30);
/// How long a client waits for the audit log to be read and checked.
const AUDIT_PATIENCE: Duration = Duration::from_secs(30);
/// After a failed accept, which means that the process has no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
const MAX_CONNECTIONS: usize = 16;
const MAX_REQUEST_LEN: u64 = 4096;
const MAX_REPLY_LEN: u64 = 1024 * 1024;

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// How the agent is.
    Status,
    /// Read the configuration again.
    Reload,
    /// Begin the next epoch.
    RotateRoot,
    /// Check the audit log.
    AuditVerify,
    /// Have a task go on with new keys.
    RotateTask {
        /// The task.
        task: TaskId,
    },
    /// Have a task finish what waits, and end.
    CloseTask {
        /// The task.
        task: TaskId,
    },
    /// Wipe a task's keys now.
    RevokeTask {
        /// The task.
        task: TaskId,
        /// End the task too.
        #[serde(default)]
        stay_closed: bool,
    },
    /// Wipe a session's keys now.
    RevokeSession {
        /// The session.
        session: SessionId,
    },
    /// Wipe all sessions' keys now, and begin the next epoch.
    Emergency {
        /// End all tasks too.
        #[serde(default)]
        stay_closed: bool,
    },
}

/// A task follows an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ordered {
    /// The task.
    pub task: TaskId,
}

/// Sessions have no keys any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoked {
    /// The sessions.
    pub sessions: Vec<String>,
}

/// What is answered.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// To [`Request::Status`].
    Status(Box<AgentStatus>),
    /// To [`Request::Reload`].
    Reloaded(Reloaded),
    /// To [`Request::RotateRoot`].
    Rotated(Rotated),
    /// To [`Request::AuditVerify`].
    Audited(AuditReport),
    /// To [`Request::RotateTask`] and [`Request::CloseTask`].
    Ordered(Ordered),
    /// To [`Request::RevokeTask`] and [`Request::RevokeSession`].
    Revoked(Revoked),
    /// To [`Request::Emergency`].
    Emergency(EmergencyReport),
    /// It was not done.
    Refused(Refused),
}

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Cause and remedy.
    pub message: String,
    /// What a program that was asked to do it ends with.
    pub exit_code: u8,
}

/// Who answers.
pub trait Desk: Send + Sync + 'static {
    /// How the agent is.
    fn status(&self) -> AgentStatus;

    /// Reads the configuration again.
    fn reload(&self) -> impl Future<Output = Result<Reloaded, Refused>> + Send;

    /// Begins the next epoch.
    fn rotate_root(&self) -> impl Future<Output = Result<Rotated, Refused>> + Send;

    /// Checks the audit log.
    fn audit_verify(&self) -> impl Future<Output = Result<AuditReport, Refused>> + Send;
    /// Has a task go on with new keys.
    ///
    /// # Errors
    /// It is not open.
    fn rotate_task(&self, task: TaskId) -> Result<Ordered, Refused>;

    /// Has a task finish what waits, and end.
    ///
    /// # Errors
    /// It is not open.
    fn close_task(&self, task: TaskId) -> Result<Ordered, Refused>;

    /// Wipes a task's keys; returns when they are gone.
    fn revoke_task(
        &self,
        task: TaskId,
        stay_closed: bool,
    ) -> impl Future<Output = Result<Revoked, Refused>> + Send;

    /// Wipes a session's keys; returns when they are gone.
    fn revoke_session(
        &self,
        session: SessionId,
    ) -> impl Future<Output = Result<Revoked, Refused>> + Send;

    /// Wipes all sessions' keys and begins the next epoch.
    fn emergency(
        &self,
        stay_closed: bool,
    ) -> impl Future<Output = Result<EmergencyReport, Refused>> + Send;
}

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
    /// The agent's answer is no reply to what was asked.
    #[error("the agent's answer is not understood ({0}); are client and agent of one version?")]
    Answer(String),
    /// The agent does not do it.
    #[error("{}", .0.message)]
    Refused(Refused),
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
    pub async fn serve<D: Desk>(self, desk: Arc<D>, stop: CancellationToken) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let accept = async || {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, self.listener.accept().await)
        };
        loop {
            let (place, accepted) = tokio::select! {
                () = stop.cancelled() => return,
                accepted = accept() => accepted,
            };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let desk = Arc::clone(&desk);
            tokio::spawn(async move {
                answer(&*desk, stream).await;
                drop(place);
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

async fn answer(desk: &impl Desk, mut stream: UnixStream) {
    let reply = match tokio::time::timeout(PATIENCE, receive(&mut stream)).await {
        Ok(Ok(request)) => obey(desk, request).await.unwrap_or_else(Reply::Refused),
        Ok(Err(problem)) => malformed(&format!("not a request: {problem}")),
        Err(_) => malformed(&format!("no request within {} s", PATIENCE.as_secs())),
    };
    let Ok(mut line) = serde_json::to_vec(&reply) else { return };
    line.push(b'\n');
    // A client that went away or stalls is its own problem.
    let _ = tokio::time::timeout(PATIENCE, stream.write_all(&line)).await;
}

async fn obey(desk: &impl Desk, request: Request) -> Result<Reply, Refused> {
    Ok(match request {
        Request::Status => Reply::Status(Box::new(desk.status())),
        Request::Reload => Reply::Reloaded(desk.reload().await?),
        Request::RotateRoot => Reply::Rotated(desk.rotate_root().await?),
        Request::AuditVerify => Reply::Audited(desk.audit_verify().await?),
        Request::RotateTask { task } => Reply::Ordered(desk.rotate_task(task)?),
        Request::CloseTask { task } => Reply::Ordered(desk.close_task(task)?),
        Request::RevokeTask { task, stay_closed } => {
            Reply::Revoked(desk.revoke_task(task, stay_closed).await?)
        }
        Request::RevokeSession { session } => Reply::Revoked(desk.revoke_session(session).await?),
        Request::Emergency { stay_closed } => Reply::Emergency(desk.emergency(stay_closed).await?),
    })
}

async fn receive(stream: &mut UnixStream) -> Result<Request, String> {
    let mut line = Vec::new();
    BufReader::new(stream.take(MAX_REQUEST_LEN))
        .read_until(b'\n', &mut line)
        .await
        .map_err(|error| error.to_string())?;
    serde_json::from_slice(&line).map_err(|error| error.to_string())
}

fn malformed(message: &str) -> Reply {
    Reply::Refused(Refused { message: message.to_owned(), exit_code: 1 })
}

/// Asks the running agent how it is.
///
/// # Errors
/// No agent answers.
pub async fn status(path: &Path) -> Result<AgentStatus, ControlError> {
    match ask(path, Request::Status, PATIENCE).await? {
        Reply::Status(status) => Ok(*status),
        other => Err(unexpected(&other)),
    }
}

/// Has the running agent read its configuration again.
///
/// # Errors
/// No agent answers, or the configuration has problems.
pub async fn reload(path: &Path) -> Result<Reloaded, ControlError> {
    match ask(path, Request::Reload, RELOAD_PATIENCE).await? {
        Reply::Reloaded(reloaded) => Ok(reloaded),
        other => Err(unexpected(&other)),
    }
}

/// Has the running agent begin the next epoch.
///
/// # Errors
/// No agent answers, or it cannot.
pub async fn rotate_root(path: &Path) -> Result<Rotated, ControlError> {
    match ask(path, Request::RotateRoot, ROTATION_PATIENCE).await? {
        Reply::Rotated(rotated) => Ok(rotated),
        other => Err(unexpected(&other)),
    }
}

/// Has the running agent check its audit log.
///
/// # Errors
/// No agent answers, or it cannot.
pub async fn audit_verify(path: &Path) -> Result<AuditReport, ControlError> {
    match ask(path, Request::AuditVerify, AUDIT_PATIENCE).await? {
        Reply::Audited(report) => Ok(report),
        other => Err(unexpected(&other)),
    }
}

/// Has a task of the running agent rotated or closed.
///
/// # Errors
/// No agent answers, or the task is not open.
pub async fn order(path: &Path, request: Request) -> Result<Ordered, ControlError> {
    match ask(path, request, PATIENCE).await? {
        Reply::Ordered(ordered) => Ok(ordered),
        other => Err(unexpected(&other)),
    }
}

/// Has sessions of the running agent revoked.
///
/// # Errors
/// No agent answers, or there are none.
pub async fn revoke(path: &Path, request: Request) -> Result<Revoked, ControlError> {
    match ask(path, request, ROTATION_PATIENCE).await? {
        Reply::Revoked(revoked) => Ok(revoked),
        other => Err(unexpected(&other)),
    }
}

/// Has the running agent revoke everything and begin the next epoch.
///
/// # Errors
/// No agent answers, or the next epoch did not begin.
pub async fn emergency(path: &Path, stay_closed: bool) -> Result<EmergencyReport, ControlError> {
    match ask(path, Request::Emergency { stay_closed }, ROTATION_PATIENCE).await? {
        Reply::Emergency(report) => Ok(report),
        other => Err(unexpected(&other)),
    }
}

fn unexpected(reply: &Reply) -> ControlError {
    ControlError::Answer(format!("{reply:?}"))
}

async fn ask(path: &Path, request: Request, patience: Duration) -> Result<Reply, ControlError> {
    let not_running = |source| ControlError::NotRunning { path: path.to_owned(), source };
    let exchange = async {
        let mut stream = UnixStream::connect(path).await?;
        let mut line = serde_json::to_vec(&request)?;
        line.push(b'\n');
        stream.write_all(&line).await?;
        let mut reply = Vec::new();
        stream.take(MAX_REPLY_LEN).read_to_end(&mut reply).await?;
        std::io::Result::Ok(reply)
    };
    let reply = tokio::time::timeout(patience, exchange)
        .await
        .map_err(|_| not_running(std::io::ErrorKind::TimedOut.into()))?
        .map_err(not_running)?;
    match serde_json::from_slice(&reply) {
        Ok(Reply::Refused(refused)) => Err(ControlError::Refused(refused)),
        Ok(reply) => Ok(reply),
        Err(error) => Err(ControlError::Answer(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Busy;

    impl Desk for Busy {
        fn status(&self) -> AgentStatus {
            AgentStatus { status: "starting".to_owned(), ..AgentStatus::default() }
        }

        async fn reload(&self) -> Result<Reloaded, Refused> {
            Ok(Reloaded { changed: vec!["tasks".to_owned()], ..Reloaded::default() })
        }

        async fn rotate_root(&self) -> Result<Rotated, Refused> {
            Err(Refused { message: "not now".to_owned(), exit_code: 75 })
        }

        async fn audit_verify(&self) -> Result<AuditReport, Refused> {
            Ok(AuditReport { entries: 7, ..AuditReport::default() })
        }

        fn rotate_task(&self, task: TaskId) -> Result<Ordered, Refused> {
            Ok(Ordered { task })
        }

        fn close_task(&self, task: TaskId) -> Result<Ordered, Refused> {
            Err(Refused { message: format!("{task} is not open"), exit_code: 1 })
        }

        async fn revoke_task(&self, task: TaskId, stay_closed: bool) -> Result<Revoked, Refused> {
            Ok(Revoked { sessions: vec![format!("{task} {stay_closed}")] })
        }

        async fn revoke_session(&self, session: SessionId) -> Result<Revoked, Refused> {
            Ok(Revoked { sessions: vec![session.to_string()] })
        }

        async fn emergency(&self, _: bool) -> Result<EmergencyReport, Refused> {
            Err(Refused { message: "not now".to_owned(), exit_code: 75 })
        }
    }

    struct Server {
        path: PathBuf,
        stop: CancellationToken,
        task: tokio::task::JoinHandle<()>,
        _scratch: tempfile::TempDir,
    }

    async fn serve() -> Server {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("control.sock");
        let stop = CancellationToken::new();
        let socket = ControlSocket::listen(&path).await.unwrap();
        let task = tokio::spawn(socket.serve(Arc::new(Busy), stop.clone()));
        Server { path, stop, task, _scratch: scratch }
    }

    #[tokio::test]
    async fn a_request_is_answered_or_refused_by_name() {
        let server = serve().await;
        assert_eq!(status(&server.path).await.unwrap().status, "starting");
        assert_eq!(audit_verify(&server.path).await.unwrap().entries, 7);
        assert_eq!(reload(&server.path).await.unwrap().changed, ["tasks"]);
        let refused = rotate_root(&server.path).await.unwrap_err();
        assert!(matches!(refused, ControlError::Refused(Refused { exit_code: 75, .. })));
        let arm: TaskId = "arm".parse().unwrap();
        let rotate = Request::RotateTask { task: arm.clone() };
        assert_eq!(order(&server.path, rotate).await.unwrap().task, arm);
        let close = order(&server.path, Request::CloseTask { task: arm.clone() }).await;
        assert_eq!(close.unwrap_err().to_string(), "arm is not open");
        let task = Request::RevokeTask { task: arm, stay_closed: true };
        assert_eq!(revoke(&server.path, task).await.unwrap().sessions, ["arm true"]);
        let id = SessionId::new(1_700_000_000_000, [7; 10]);
        let session = Request::RevokeSession { session: id.clone() };
        assert_eq!(revoke(&server.path, session).await.unwrap().sessions, [id.to_string()]);
        assert!(emergency(&server.path, false).await.is_err());
        server.stop.cancel();
        server.task.await.unwrap();
        let nobody = status(&server.path).await.unwrap_err();
        assert!(matches!(nobody, ControlError::NotRunning { .. }), "{nobody}");
    }

    async fn reply_to(server: &Server, bytes: &[u8]) -> String {
        let mut stream = UnixStream::connect(&server.path).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.unwrap();
        reply
    }

    #[tokio::test(start_paused = true)]
    async fn silence_nonsense_and_floods_end_in_a_refusal() {
        let server = serve().await;
        let flood = vec![b' '; usize::try_from(MAX_REQUEST_LEN).unwrap() * 4];
        for (bytes, words) in [
            (&b""[..], "no request within 2 s"),
            (b"{\"request\"", "no request within 2 s"),
            (b"{\"request\": \"open-the-pod-bay-doors\"}\n", "not a request: unknown variant"),
            (b"status\n", "not a request"),
        ] {
            let reply = reply_to(&server, bytes).await;
            assert!(reply.contains(words), "{words} is not in: {reply}");
        }
        let mut stream = UnixStream::connect(&server.path).await.unwrap();
        // The agent stops reading: the rest of the flood may be refused.
        let _ = stream.write_all(&flood).await;
        assert_eq!(status(&server.path).await.unwrap().status, "starting");
    }

    #[tokio::test(start_paused = true)]
    async fn silent_clients_hold_up_nobody_for_long() {
        let server = serve().await;
        let mut silent = Vec::new();
        for _ in 0..MAX_CONNECTIONS * 2 {
            silent.push(UnixStream::connect(&server.path).await.unwrap());
        }
        let reply = reply_to(&server, b"{\"request\": \"status\"}\n").await;
        assert!(reply.contains("starting"), "{reply}");
    }
}
