//! The report: one self-contained HTML page, no script, nothing from elsewhere, light and dark.
//!
//! Invariants:
//! - every text that comes from a file or a message is escaped;
//! - every plot says in words what it shows, in which unit.

mod latency;
mod sides;
mod svg;
mod traces;
mod wire;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::Result;

use self::svg::escape;
use super::play::{Job, Part};
use super::statistics::{grouped, megabytes, percent, readable};
use super::summary::{READINGS, Summary};

/// Writes the report, over an earlier one.
///
/// # Errors
/// The file cannot be written.
pub fn write(path: &Path, summary: &Summary, jobs: &[Job]) -> Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    Ok(fs::write(path, page(summary, jobs))?)
}

fn page(summary: &Summary, jobs: &[Job]) -> String {
    let s = summary;
    let sections = [
        section(
            "What the robot felt, and what was decided",
            &trace_caption(s),
            &format!(
                "<div class=\"legend\"><span><i class=\"a\"></i>x</span>\
                 <span><i class=\"b\"></i>y</span>\
                 <span><i class=\"c\"></i>z</span></div>{}",
                traces::html(jobs, &s.labels)
            ),
        ),
        section("Decisions against labels", &accuracy_caption(s), &confusion(s, jobs)),
        section("What each side saw", SIDES_CAPTION, &sides(s, jobs)),
        section("Where the time went", &latency_caption(s), &wide(&latency::chart(s))),
        section("Bytes on the wire", &wire_caption(s), &wide(&wire::chart(s))),
    ];
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>moai-agent: {jobs} encrypted decisions</title><style>{style}</style></head>\n\
         <body><main><h1>{jobs} grasps judged, no reading shown</h1>\
         <p class=\"lead\">A robot asked a model on a server whether its grasps went well. The \
         agent on the robot encrypted every window of force and torque readings; the server \
         evaluated the model “{model}” on the ciphertext ({scheme}: {features} features, \
         {evaluation}) and returned an encrypted answer. Robot and server were separate \
         processes, connected through an MQTT broker with mutual TLS; the agent’s root secret was \
         sealed in a software TPM.</p>{cards}{sections}<footer>{footer}</footer></main></body>\
         </html>\n",
        jobs = s.jobs,
        style = include_str!("style.css"),
        model = escape(&s.model),
        features = s.features,
        scheme = s.scheme,
        evaluation = s.evaluation,
        cards = cards(s),
        sections = sections.concat(),
        footer = FOOTER,
    )
}

fn section(title: &str, caption: &str, body: &str) -> String {
    format!("<section><h2>{title}</h2><p class=\"caption\">{caption}</p>{body}</section>\n")
}

fn wide(chart: &str) -> String {
    format!("<div class=\"card scroll\">{chart}</div>")
}

fn cards(s: &Summary) -> String {
    let key = &s.opening;
    let cards = [
        (
            format!("{} of {}", s.agree, s.jobs),
            "encrypted decisions equal the plaintext model’s",
            match s.close {
                0 => {
                    "The same model was evaluated here on the readings themselves, for comparison."
                        .to_owned()
                }
                close => format!(
                    "The same model was evaluated here on the readings themselves. {close} more \
                     had scores nearer to each other than the noise that hides the key."
                ),
            },
        ),
        (
            s.percentile(Part::Total, 50),
            "from last sample to decision (p50)",
            format!(
                "p99 {}. The computation on ciphertext alone: p50 {}.",
                s.percentile(Part::Total, 99),
                s.percentile(Part::Compute, 50)
            ),
        ),
        (
            format!("{} B", grouped(s.bytes.ciphertext_up)),
            "of ciphertext up per job",
            match s.naive_window() {
                Some(window) => format!(
                    "Every reading as a CompressedFheInt16 would be {} B, {} times as much.",
                    grouped(window),
                    grouped(window / s.bytes.ciphertext_up.max(1))
                ),
                None => {
                    "Half of a ciphertext is random: it travels as a seed of 64 bytes.".to_owned()
                }
            },
        ),
        (
            megabytes(key.key_bytes),
            "evaluation keys, once per session",
            format!(
                "Generated in {}, uploaded and registered in {}.",
                readable(key.generation),
                readable(key.upload)
            ),
        ),
    ];
    let mut html = String::from("<div class=\"cards\">");
    for (figure, what, note) in cards {
        // Writing to a String cannot fail.
        let _ = write!(
            html,
            "<div class=\"card\"><div class=\"figure\">{figure}</div>\
             <div class=\"what\">{what}</div><p class=\"note\">{note}</p></div>"
        );
    }
    html + "</div>\n"
}

/// Labels down, decisions across.
fn confusion(s: &Summary, jobs: &[Job]) -> String {
    let mut html = String::from("<div class=\"card scroll\"><table><thead><tr><th>label</th>");
    for decision in &s.labels {
        // Writing to a String cannot fail.
        let _ = write!(html, "<th>decided {}</th>", escape(decision));
    }
    html.push_str("</tr></thead><tbody>");
    for label in &s.labels {
        let _ = write!(html, "<tr><td>{}</td>", escape(label));
        for decision in &s.labels {
            let both = |job: &&Job| job.truth == *label && job.answer.label == *decision;
            let _ = write!(html, "<td>{}</td>", jobs.iter().filter(both).count());
        }
        html.push_str("</tr>");
    }
    html + "</tbody></table></div>"
}

/// A job that shows something: the first that was no success, else the first.
fn sides(s: &Summary, jobs: &[Job]) -> String {
    let normal = s.labels.first();
    let telling = jobs.iter().find(|job| Some(&job.truth) != normal).or(jobs.first());
    telling.map(|job| sides::html(job, &s.model)).unwrap_or_default()
}

fn trace_caption(s: &Summary) -> String {
    format!(
        "Up to two played recordings of each class, {READINGS} readings each: force and torque at \
         the wrist along three axes over 15 samples (about 315 ms). The data set gives no units. \
         All cards share one signed logarithmic axis, sign(x)·ln(1 + |x|), the compression that \
         the model “{}” applies to its features. “Decision” is what the agent decrypted.",
        escape(&s.model)
    )
}

fn accuracy_caption(s: &Summary) -> String {
    format!(
        "Number of jobs. {} of the decisions are the label ({} of {}), but the model was trained \
         on these very trials, so this figure says only that nothing is lost on the way. Accuracy \
         in cross-validation, on trials the model had not seen: {}.",
        percent(s.right, s.jobs),
        s.right,
        s.jobs,
        escape(&s.cross_validated)
    )
}

const SIDES_CAPTION: &str = "One job. Left, the readings on the robot. Right, all the server \
    received for it, taken from the uplink’s broker: the encrypted input in hexadecimal, and the \
    metadata of its frame. The server also learns when a job comes and how large it is.";

fn latency_caption(s: &Summary) -> String {
    let tail = if s.jobs < 100 { " (of fewer than 100 jobs, p99 is the slowest one)" } else { "" };
    format!(
        "One dot per job on a logarithmic time axis, as the agent measured it; dots are spread \
         vertically only to keep them apart. Solid mark: p50. Dotted mark: p99{tail}. One job at a \
         time; robot, brokers and server shared this machine, so “uplink” holds no network \
         distance."
    )
}

fn wire_caption(s: &Summary) -> String {
    let how = match s.naive_reading {
        Some(reading) => format!(
            "The agent sends {} quantised features instead of {READINGS} readings and packs them \
             into one seeded ciphertext; that is why it is smaller than the plaintext. Naive: one \
             tfhe CompressedFheInt16 a value, {} B as serialised by tfhe’s safe_serialize in this \
             run.",
            s.features,
            grouped(reading)
        ),
        None => format!(
            "The agent sends {} scaled features in one ciphertext, whose random half travels as a \
             seed, and of the evaluation keys only those that the model’s rotations need.",
            s.features
        ),
    };
    format!(
        "Bytes that crossed the uplink (blue: four sizes of one job, and the keys of its session) \
         beside other ways to send the same window (grey), on a logarithmic axis that begins at \
         one byte. {how} MQTT and TLS headers are not counted."
    )
}

const FOOTER: &str = "Recordings: Robot Execution Failures, Luis Seabra Lopes and Luis M. \
    Camarinha-Matos, Universidade Nova de Lisboa; UCI Machine Learning Repository, 1999, \
    <a href=\"https://doi.org/10.24432/C5M89N\">DOI 10.24432/C5M89N</a>, licensed under \
    <a href=\"https://creativecommons.org/licenses/by/4.0/\">CC BY 4.0</a>; distinct signals of \
    the files lp1 to lp5, unchanged. Names such as lp1:17 are file and number of the trial. \
    Written by the demo of moai-agent; the page loads nothing from elsewhere.";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::demo::play::tests::example;
    use crate::demo::site::Opening;
    use crate::reference::{Reference, Scheme};

    const HOSTILE: &str = "\"'><script src=//x></script>";

    #[test]
    fn what_comes_from_outside_is_escaped_and_nothing_is_loaded() {
        let model = Reference::load(Scheme::Tfhe, "grasp").unwrap();
        let mut job = example(HOSTILE, HOSTILE);
        job.grasp.name = HOSTILE.to_owned();
        job.grasp.trial.label = HOSTILE.to_owned();
        job.answer.session = HOSTILE.to_owned();
        let time = Duration::from_secs(1);
        let opening = Opening { key_bytes: 22_593_601, generation: time, upload: time };
        let jobs = [job];
        let summary = Summary::new(&model, opening, &jobs).unwrap();
        let page = page(&summary, &jobs);
        assert!(!page.contains("<script"), "{page}");
        assert!(!page.contains("src=\""), "{page}");
        assert!(!page.contains("NaN") && !page.contains("=\"inf"), "{page}");
        for expected in ["1 of 1", "902 ms", "147,420 B", "22.6 MB", "&lt;script", "ab ab ab"] {
            assert!(page.contains(expected), "{expected} is missing: {page}");
        }
    }
}
