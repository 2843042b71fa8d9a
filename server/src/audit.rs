//! The audit log: what happened to whose session, one JSON object a line.
//!
//! Invariants:
//! - a line names tenant, robot, session, context, model, times and codes; no key, no ciphertext,
//!   nothing of a reading;
//! - a line is written in one piece, at the end of the file; the file is only ever appended to and
//!   has mode 0600;
//! - a log that cannot be written stops no service: the failure is in the ordinary log, once until
//!   writing works again.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use moai_transport::ids::{ContextId, ModelId, SessionId, WorkerId};
use moai_transport::message::ErrorCode;
use serde::Serialize;

use crate::store::{SessionKey, UnixMillis};

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A session began, or began anew under other keys.
    Opened {
        /// How long it may live.
        ttl_seconds: u64,
        /// Length of its evaluation keys, in bytes.
        key_bytes: u64,
        /// Whether the robot's TPM vouches for it in this session.
        attested: bool,
    },
    /// This worker goes on with a session that another one, or an earlier run, had begun.
    TakenOver {
        /// Whether its keys were complete and checked already.
        registered: bool,
    },
    /// The robot's TPM proved what it had to.
    Attested,
    /// The evaluation keys are complete and checked.
    Registered {
        /// How long it took to load, check and prepare them.
        prepare_ms: u64,
    },
    /// A job was computed.
    Computed {
        /// Its number in the session.
        job: u64,
        /// What was computed.
        model: ModelId,
        /// How long it took.
        compute_ms: u64,
    },
    /// A frame was refused.
    Refused {
        /// Why, as the robot hears it.
        code: ErrorCode,
        /// The same for people.
        message: String,
        /// The job that it was about; 0 if it was about the session.
        job: u64,
    },
    /// The robot ended the session, and its keys were removed.
    Deleted,
    /// The session's time was over, and its keys were removed.
    Expired,
}

/// One line.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    time_ms: u64,
    worker: &'a WorkerId,
    tenant: &'a str,
    robot: &'a str,
    session: &'a SessionId,
    context: &'a ContextId,
    #[serde(flatten)]
    event: &'a Event,
}

/// Where the lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuditTarget {
    /// To standard output, for whoever collects it.
    Stdout,
    /// To the end of this file.
    File(PathBuf),
}

/// The audit log of one worker.
pub struct Audit {
    target: AuditTarget,
    writer: Box<dyn Write + Send>,
    worker: WorkerId,
    context: ContextId,
    has_failed: bool,
}

impl Audit {
    /// Opens the log.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open(target: AuditTarget, worker: WorkerId, context: ContextId) -> io::Result<Self> {
        let writer = writer(&target)?;
        Ok(Self { target, writer, worker, context, has_failed: false })
    }

    /// Opens the file again under its name: whoever rotates logs has moved it away.
    pub(crate) fn reopen(&mut self) {
        match writer(&self.target) {
            Ok(writer) => self.writer = writer,
            Err(error) => tracing::error!(%error, "the audit log cannot be opened again"),
        }
    }

    /// Writes a line.
    pub(crate) fn record(&mut self, key: &SessionKey, now: UnixMillis, event: &Event) {
        let seconds = i64::try_from(now.0 / 1000).unwrap_or(i64::MAX);
        let line = Line {
            time: moai_transport::tls::utc(seconds),
            time_ms: now.0,
            worker: &self.worker,
            tenant: key.identity.tenant.as_str(),
            robot: key.identity.robot.as_str(),
            session: &key.session,
            context: &self.context,
            event,
        };
        let written = serde_json::to_vec(&line).map_err(io::Error::from).and_then(|mut bytes| {
            bytes.push(b'\n');
            self.writer.write_all(&bytes)?;
            self.writer.flush()
        });
        if let Err(error) = &written
            && !self.has_failed
        {
            tracing::error!(%error, "the audit log cannot be written; the service goes on");
        }
        self.has_failed = written.is_err();
    }
}

fn writer(target: &AuditTarget) -> io::Result<Box<dyn Write + Send>> {
    Ok(match target {
        AuditTarget::Stdout => Box::new(io::stdout()),
        AuditTarget::File(path) => Box::new(append(path)?),
    })
}

fn append(path: &std::path::Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use moai_transport::ids::Digest;

    use super::*;

    fn audit(path: &std::path::Path) -> Audit {
        let target = AuditTarget::File(path.to_owned());
        Audit::open(target, "w-1".parse().unwrap(), ContextId(Digest([7; 32]))).unwrap()
    }

    fn key() -> SessionKey {
        let identity = "acme.r1".parse().unwrap();
        SessionKey { identity, session: SessionId::new(1, [0; 10]) }
    }

    #[test]
    fn a_line_says_who_what_and_when() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.jsonl");
        let mut log = audit(&path);
        let now = UnixMillis(1_800_000_000_250);
        let code = ErrorCode::TooLarge;
        log.record(&key(), now, &Event::Refused { code, message: "a\nb".to_owned(), job: 7 });
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        for (field, expected) in
            [("event", "refused"), ("tenant", "acme"), ("robot", "r1"), ("code", "too_large")]
        {
            assert_eq!(line[field], expected, "{text}");
        }
        assert_eq!((&line["job"], &line["time_ms"]), (&7.into(), &now.0.into()));
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_log_that_was_moved_away_is_begun_again_and_nothing_is_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let (path, moved) = (directory.path().join("a"), directory.path().join("a.1"));
        let mut log = audit(&path);
        log.record(&key(), UnixMillis(1), &Event::Deleted);
        std::fs::rename(&path, &moved).unwrap();
        log.record(&key(), UnixMillis(2), &Event::Deleted);
        log.reopen();
        log.record(&key(), UnixMillis(3), &Event::Expired);
        audit(&path).record(&key(), UnixMillis(4), &Event::Expired);
        let lines = |path| std::fs::read_to_string(path).unwrap().lines().count();
        assert_eq!((lines(&moved), lines(&path)), (2, 2));
    }
}
