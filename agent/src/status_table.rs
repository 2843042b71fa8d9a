//! The status as a person reads it in a terminal.

use std::fmt::Write;

use crate::status::{AgentStatus, SessionStatus, TaskStatus, UploadStatus};

/// The status as text, one fact a line.
#[must_use]
pub fn render(status: &AgentStatus) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name:<10} {value}");
    };
    line("robot", &status.identity);
    line("status", &status.status);
    for reason in &status.reasons {
        line("", reason);
    }
    if let Some(epoch) = status.epoch {
        line("root", &format!("epoch {epoch}, kept by {}", status.custodian));
    }
    let uptime = duration(status.uptime_seconds);
    line("agent", &format!("{} (pid {}), up {uptime}", status.version, status.pid));
    if !status.restart.is_empty() {
        line("", &format!("needs a restart: {}", status.restart.join(", ")));
    }
    line("memory", &status.memory);
    line("identity", &status.certificate);
    let models =
        if status.models.is_empty() { "none yet".to_owned() } else { status.models.join(", ") };
    line("models", &models);
    let (ready, wanted) = status.warm;
    line("keys", &format!("{ready} of {wanted} made ahead"));
    if status.tasks.is_empty() {
        line("tasks", "none");
    }
    for (name, task) in &status.tasks {
        line("task", &task_line(name, task));
        for (id, session) in &task.sessions {
            line("", &session_line(id, session, task));
        }
    }
    text
}

/// The tasks alone, as `moai-agent task list` shows them.
#[must_use]
pub fn tasks(status: &AgentStatus) -> String {
    let mut text = String::new();
    for (name, task) in &status.tasks {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}", task_line(name, task));
        for (id, session) in &task.sessions {
            let _ = writeln!(text, "  {}", session_line(id, session, task));
        }
    }
    if text.is_empty() { "no tasks\n".to_owned() } else { text }
}

fn task_line(name: &str, task: &TaskStatus) -> String {
    let mut text = format!("{name}: {}", task.state);
    if !task.model.is_empty() {
        let _ = write!(text, " with {}", task.model);
    }
    if let Some(reason) = &task.reason {
        let _ = write!(text, " ({reason})");
    }
    let waiting: usize = task.sessions.values().map(|session| session.waiting).sum();
    let TaskStatus { answered, refused, .. } = task;
    let _ = write!(text, "; {answered} answered, {waiting} waiting, {refused} refused");
    if task.queued > 0 {
        let _ = write!(text, ", {} messages queued", task.queued);
    }
    if task.dropped_samples > 0 {
        let _ = write!(text, ", {} samples dropped", task.dropped_samples);
    }
    text
}

/// `keys 4.2 of 22.6 MB (18 %) at 60 KB/s, 5 min 7 s left`
fn uploading(upload: &UploadStatus) -> String {
    let UploadStatus { bytes, of, bytes_per_second, seconds_left } = upload;
    let percent = bytes * 100 / (*of).max(1);
    let mut text = format!("keys {} of {} MB ({percent} %)", megabytes(*bytes), megabytes(*of));
    if let Some(rate) = bytes_per_second {
        let _ = write!(text, " at {} KB/s", rate.div_ceil(1000));
    }
    if let Some(seconds) = seconds_left {
        let _ = write!(text, ", {} left", duration(*seconds));
    }
    text
}

fn megabytes(bytes: u64) -> String {
    let tenths = bytes / 100_000;
    format!("{}.{}", tenths / 10, tenths % 10)
}

fn session_line(id: &str, session: &SessionStatus, task: &TaskStatus) -> String {
    let role = if task.successor.as_deref() == Some(id) { "successor" } else { "session" };
    let mut text = format!("{role} {id}: {}", session.state);
    if session.warm {
        text.push_str(", keys made ahead");
    }
    if let Some(upload) = &session.upload {
        let _ = write!(text, ", {}", uploading(upload));
    }
    let _ = write!(
        text,
        ", ends in {}, {} decryptions left, {} waiting",
        duration(session.expires_in_seconds),
        session.decryptions_left,
        session.waiting
    );
    text
}

fn duration(seconds: u64) -> String {
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds} s"),
        (0, _) => format!("{minutes} min {seconds} s"),
        _ => format!("{hours} h {minutes} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_sees_what_each_task_and_each_session_waits_for() {
        let session = SessionStatus {
            state: "registering".into(),
            warm: true,
            upload: Some(UploadStatus {
                bytes: 4_234_567,
                of: 22_600_000,
                bytes_per_second: Some(59_800),
                seconds_left: Some(308),
            }),
            expires_in_seconds: 3599,
            decryptions_left: 10_000,
            waiting: 2,
        };
        let task = TaskStatus {
            model: "grasp".into(),
            state: "opening".into(),
            reason: Some("no compute server answers".into()),
            successor: Some("0198".into()),
            sessions: [("0198".to_owned(), session)].into(),
            ..TaskStatus::default()
        };
        assert_eq!(
            task_line("arm", &task),
            "arm: opening with grasp (no compute server answers); 0 answered, 2 waiting, 0 refused"
        );
        assert_eq!(
            session_line("0198", &task.sessions["0198"], &task),
            "successor 0198: registering, keys made ahead, keys 4.2 of 22.6 MB (18 %) at 60 KB/s, \
             5 min 8 s left, ends in 59 min 59 s, 10000 decryptions left, 2 waiting"
        );
        let behind = TaskStatus { queued: 7, dropped_samples: 90, ..task };
        let line = task_line("arm", &behind);
        assert!(line.ends_with("0 refused, 7 messages queued, 90 samples dropped"), "{line}");
    }
}
