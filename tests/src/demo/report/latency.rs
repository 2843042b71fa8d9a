//! Where the time of every job went.

use std::time::Duration;

use super::svg::{Svg, number};
use crate::demo::play::Part;
use crate::demo::statistics::readable;
use crate::demo::summary::Summary;

const WIDTH: f64 = 1040.0;
const LEFT: f64 = 190.0;
const RIGHT: f64 = 830.0;
const TOP: f64 = 34.0;
const ROW: f64 = 52.0;
/// More dots than this in a row cover each other.
const CROWD: usize = 60;

/// One row per part: a dot per job, p50 and p99.
#[must_use]
pub(super) fn chart(summary: &Summary) -> String {
    let parts = summary.times();
    let all = || parts.iter().flat_map(|(_, times)| times.values()).map(|time| exponent(*time));
    let low = all().fold(f64::INFINITY, f64::min).floor();
    let high = all().fold(f64::NEG_INFINITY, f64::max).ceil().max(low + 1.0);
    let x = |time: Duration| LEFT + (exponent(time) - low) / (high - low) * (RIGHT - LEFT);
    let dot = if summary.jobs > CROWD { "dot faint" } else { "dot" };
    let bottom = TOP + ROW * number(parts.len());
    let mut svg = Svg::new(WIDTH, bottom + 26.0, "Latency of every job, part by part");
    for (power, label) in DECADES {
        let x = LEFT + (power - low) / (high - low) * (RIGHT - LEFT);
        if (low..=high).contains(&power) {
            svg.line("grid", (x, TOP), (x, bottom));
            svg.text("middle", (x, bottom + 18.0), label);
        }
    }
    svg.text("end", (RIGHT + 100.0, TOP - 14.0), "p50");
    svg.text("end", (WIDTH - 10.0, TOP - 14.0), "p99");
    for (index, (part, times)) in parts.iter().enumerate() {
        let middle = TOP + ROW * (number(index) + 0.5);
        svg.text("strong", (0.0, middle - 2.0), part.name());
        svg.text("", (0.0, middle + 14.0), explanation(*part));
        for (index, time) in times.values().iter().enumerate() {
            // Neighbours in time are apart in height, the same way on every run.
            let jitter = number(index * 7 % 13) / 12.0 - 0.5;
            svg.dot(dot, (x(*time), middle + jitter * 22.0), &readable(*time));
        }
        for (percent, class, column) in [(50, "mark", RIGHT + 100.0), (99, "tail", WIDTH - 10.0)] {
            if let Some(time) = times.percentile(percent) {
                svg.line(class, (x(time), middle - 19.0), (x(time), middle + 19.0));
                svg.text("strong end", (column, middle + 4.0), &readable(time));
            }
        }
    }
    svg.finish()
}

const DECADES: [(f64, &str); 9] = [
    (0.0, "1 µs"),
    (1.0, "10 µs"),
    (2.0, "100 µs"),
    (3.0, "1 ms"),
    (4.0, "10 ms"),
    (5.0, "100 ms"),
    (6.0, "1 s"),
    (7.0, "10 s"),
    (8.0, "100 s"),
];

/// The decimal logarithm of a duration in microseconds.
fn exponent(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).max(1.0).log10()
}

fn explanation(part: Part) -> &'static str {
    match part {
        Part::Encrypt => "features, encryption (robot)",
        Part::Uplink => "links, brokers, server queue",
        Part::Compute => "evaluation on ciphertext",
        Part::Decrypt => "checks, decryption (robot)",
        Part::Total => "last sample to decision",
    }
}
