//! The status as a person reads it in a terminal.

use std::fmt::Write;

use crate::status::{AgentStatus, TaskStatus, UploadStatus};

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
    line("memory", &status.memory);
    line("identity", &status.certificate);
    let models =
        if status.models.is_empty() { "none yet".to_owned() } else { status.models.join(", ") };
    line("models", &models);
    if status.tasks.is_empty() {
        line("tasks", "none");
    }
    for (name, task) in &status.tasks {
        line("task", &task_line(name, task));
    }
    text
}

fn task_line(name: &str, task: &TaskStatus) -> String {
    let mut text = format!("{name}: {} with {}", task.state, task.model);
    if let Some(reason) = &task.reason {
        let _ = write!(text, " ({reason})");
    }
    if let Some(upload) = &task.upload {
        let _ = write!(text, ", {}", uploading(upload));
    }
    if let Some(seconds) = task.expires_in_seconds {
        let _ = write!(text, ", session ends in {}", duration(seconds));
    }
    let TaskStatus { waiting, answered, refused, .. } = task;
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
    fn a_person_sees_what_each_task_waits_for() {
        let task = TaskStatus {
            model: "grasp".into(),
            state: "opening".into(),
            reason: Some("no compute server answers".into()),
            upload: Some(UploadStatus {
                bytes: 4_234_567,
                of: 22_600_000,
                bytes_per_second: Some(59_800),
                seconds_left: Some(308),
            }),
            expires_in_seconds: Some(3599),
            waiting: 2,
            ..TaskStatus::default()
        };
        assert_eq!(
            task_line("arm", &task),
            "arm: opening with grasp (no compute server answers), keys 4.2 of 22.6 MB (18 %) at \
             60 KB/s, 5 min 8 s left, session ends in 59 min 59 s; 0 answered, 2 waiting, 0 refused"
        );
        let behind = TaskStatus { queued: 7, dropped_samples: 90, ..task };
        let line = task_line("arm", &behind);
        assert!(line.ends_with("0 refused, 7 messages queued, 90 samples dropped"), "{line}");
    }
}
