//! One job as the robot saw it and as the server saw it.

use std::fmt::Write as _;

use super::svg::escape;
use crate::demo::play::Job;
use crate::demo::statistics::grouped;
use crate::world::IDENTITY;

/// Bytes on a line of the excerpt.
const LINE: usize = 16;
/// Lines of it.
const LINES: usize = 12;

/// Two cards beside each other.
#[must_use]
pub(super) fn html(job: &Job, model: &str) -> String {
    format!(
        "<div class=\"sides\"><div class=\"card\"><h3>The robot</h3>{readings}<dl>{robot}</dl>\
         </div>\
         <div class=\"card\"><h3>The server</h3><pre>{hex}</pre><dl>{server}</dl></div></div>",
        readings = readings(job),
        robot = list(&[("recording", &job.grasp.name), ("decision", &job.answer.label)]),
        hex = hex(&job.ciphertext),
        server = list(&[
            ("readings", "none"),
            ("decision", "unknown to it: the result is encrypted too"),
            ("who asks", IDENTITY),
            ("model", model),
            ("session", &job.answer.session),
            ("job", &job.answer.job.to_string()),
        ]),
    )
}

fn list(entries: &[(&str, &str)]) -> String {
    let entry = |(name, value): &(&str, &str)| format!("<dt>{name}</dt><dd>{}</dd>", escape(value));
    entries.iter().map(entry).collect::<Vec<_>>().concat()
}

fn readings(job: &Job) -> String {
    let mut html = String::from(
        "<table class=\"readings\"><thead><tr><th>sample</th><th>Fx</th><th>Fy</th><th>Fz</th>\
         <th>Tx</th><th>Ty</th><th>Tz</th></tr></thead><tbody>",
    );
    for (index, sample) in job.grasp.trial.samples.iter().enumerate() {
        // Writing to a String cannot fail.
        let _ = write!(html, "<tr><td>{}</td>", index + 1);
        for value in sample {
            let _ = write!(html, "<td>{}</td>", value.to_string().replace('-', "−"));
        }
        html.push_str("</tr>");
    }
    html + "</tbody></table>"
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (index, line) in bytes.chunks(LINE).take(LINES).enumerate() {
        let pairs: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{:04x}  {}", index * LINE, pairs.join(" "));
    }
    match bytes.len().saturating_sub(LINE * LINES) {
        0 => {
            let _ = write!(text, "that is all: {} bytes", bytes.len());
        }
        more => {
            let _ = write!(text, "… and {} bytes more", grouped(more as u64));
        }
    }
    text
}
