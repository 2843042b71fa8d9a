//! The table at the end.

use std::fmt::Write as _;

use super::play::{Job, Part};
use super::statistics::{grouped, percent, readable};
use super::summary::{READINGS, Summary};

/// The figures of a run as text.
#[must_use]
pub fn text(summary: &Summary) -> String {
    let s = summary;
    let bytes = &s.bytes;
    let mut rows = vec![
        ("jobs", format!("{}, one at a time, model \"{}\" under {}", s.jobs, s.model, s.scheme)),
        ("encrypted = plaintext model", agreement(s)),
        (
            "accuracy against the labels",
            format!(
                "{} ({} of {}); the model was trained on these very trials",
                percent(s.right, s.jobs),
                s.right,
                s.jobs
            ),
        ),
        ("  by cross-validation", s.cross_validated.clone()),
        (
            "up per job",
            format!(
                "{} B ciphertext, {} B with frame",
                grouped(bytes.ciphertext_up),
                grouped(bytes.frame_up)
            ),
        ),
        (
            "down per job",
            format!(
                "{} B ciphertext, {} B with frame",
                grouped(bytes.ciphertext_down),
                grouped(bytes.frame_down)
            ),
        ),
        (
            "  the readings in plaintext",
            format!("{} B ({READINGS} numbers of 64 bits)", grouped(bytes.plain)),
        ),
    ];
    if let (Some(reading), Some(window), Some(features)) =
        (s.naive_reading, s.naive_window(), s.naive_features())
    {
        let (window, reading) = (grouped(window), grouped(reading));
        let text = format!("{window} B ({READINGS} CompressedFheInt16 of {reading} B)");
        rows.push(("  the readings, naive encoding", text));
        let text = format!("{} B ({} CompressedFheInt16)", grouped(features), s.features);
        rows.push(("  the features, naive encoding", text));
    }
    rows.push((
        "evaluation keys, per session",
        format!(
            "{} B, generated in {}, uploaded and registered in {}",
            grouped(s.opening.key_bytes),
            readable(s.opening.generation),
            readable(s.opening.upload)
        ),
    ));
    let latency = |part| format!("{:>8}  {:>8}", s.percentile(part, 50), s.percentile(part, 99));
    rows.push(("latency", format!("{:>8}  {:>8}", "p50", "p99")));
    rows.push(("  last sample to decision", latency(Part::Total)));
    rows.push(("  = encrypt on the robot", latency(Part::Encrypt)));
    rows.push(("  + uplink, brokers, queue", latency(Part::Uplink)));
    rows.push(("  + compute on ciphertext", latency(Part::Compute)));
    rows.push(("  + decrypt on the robot", latency(Part::Decrypt)));
    let mut text = String::new();
    for (name, value) in rows {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {name:<31} {value}");
    }
    if s.jobs < 100 {
        let _ = writeln!(text, "  Of fewer than 100 jobs, p99 is the slowest one.");
    }
    text
}

fn agreement(s: &Summary) -> String {
    match s.close {
        0 => format!("{} of {}", s.agree, s.jobs),
        close => format!(
            "{} of {}; {close} too close to call: scores nearer to each other than the noise that \
             hides the key",
            s.agree, s.jobs
        ),
    }
}

/// The jobs in which encrypted and plaintext model decide differently beyond all noise, one a line.
#[must_use]
pub fn disagreements(jobs: &[Job]) -> String {
    let mut text = String::new();
    for job in jobs.iter().filter(|job| !job.agrees() && !job.is_close()) {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "  {} (job {}): encrypted {}, plaintext {}, label {}",
            job.grasp.name, job.answer.job, job.answer.label, job.clear, job.truth
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::play::tests::example;

    #[test]
    fn only_disagreements_are_listed() {
        let mut close = example("collision", "normal");
        close.possible.push("collision".to_owned());
        let jobs = [example("normal", "normal"), example("collision", "normal"), close];
        let expected = "  lp1:1 (job 1): encrypted collision, plaintext normal, label normal\n";
        assert_eq!(disagreements(&jobs), expected);
    }
}
