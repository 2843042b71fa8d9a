//! The commands about the audit log.

use std::fmt::Write;
use std::sync::Arc;

use anyhow::{Result, bail};
use serde_json::Value;

use super::{print, runtime};
use crate::audit::{self, AuditReport};
use crate::config::Config;
use crate::control::{self, ControlError};
use crate::custody;
use crate::disk::SystemDisk;

/// Fields that say where an entry is, not what happened.
const FRAME: [&str; 6] = ["sequence", "time", "boot", "event", "previous", "mac"];

pub(super) fn verify(config: &Arc<Config>) -> Result<()> {
    let asked = runtime()?.block_on(control::audit_verify(&config.control_socket));
    let report = match asked {
        Err(ControlError::NotRunning { .. }) => custody::verify_audit(config)?,
        asked => asked?,
    };
    conclude(&report)
}

fn conclude(report: &AuditReport) -> Result<()> {
    let AuditReport { entries, span, findings, more_findings, is_torn } = report;
    let span = span.map_or(String::new(), |(oldest, newest)| format!(", {oldest} to {newest}"));
    print(&format!("{entries} entries are as the agent wrote them{span}."))?;
    if *is_torn {
        print("The last line was cut off while it was written, as by a power cut.")?;
    }
    if report.is_clean() {
        return Ok(());
    }
    for finding in findings {
        print(&finding.to_string())?;
    }
    if *more_findings > 0 {
        print(&format!("… and {more_findings} more."))?;
    }
    bail!("the audit log was tampered with, or its disk has lost something")
}

pub(super) fn show(config: &Config, json: bool) -> Result<()> {
    let lines = audit::read_lines(&SystemDisk, &config.state_directory, config.audit)?;
    let mut text = String::new();
    for line in lines {
        if json {
            text.push_str(&line);
        } else {
            text.push_str(&readable(&line));
        }
        text.push('\n');
    }
    print(&text)
}

fn readable(line: &str) -> String {
    let Ok(Value::Object(entry)) = serde_json::from_str(line) else {
        return format!("? {}", line.escape_debug());
    };
    let field = |name| entry.get(name).map(plain).unwrap_or_default();
    let mut text = format!("{:>6}  {}  {}", field("sequence"), field("time"), field("event"));
    for (name, value) in entry.iter().filter(|(name, _)| !FRAME.contains(&name.as_str())) {
        // Writing to a string cannot fail.
        let _ = write!(text, " {name}={}", plain(value));
    }
    text
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.escape_debug().to_string(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_readable_and_nonsense_does_not_reach_the_terminal_raw() {
        let line = r#"{"sequence":7,"time":1764096000,"boot":"b","event":"session_ended","task":"arm","reason":"expired","previous":"00","mac":"00"}"#;
        assert_eq!(readable(line), "     7  1764096000  session_ended reason=expired task=arm");
        assert_eq!(readable("\u{1b}[2J"), "? \\u{1b}[2J");
    }
}
