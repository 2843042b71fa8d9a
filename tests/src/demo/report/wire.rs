//! Bytes on the wire, beside what they would be otherwise.

use super::svg::{Svg, number};
use crate::demo::statistics::grouped;
use crate::demo::summary::{READINGS, Summary};

const WIDTH: f64 = 1040.0;
const LEFT: f64 = 330.0;
const RIGHT: f64 = WIDTH - 110.0;
const ROW: f64 = 38.0;

/// One bar per way to send a window, on a logarithmic axis.
#[must_use]
pub(super) fn chart(summary: &Summary) -> String {
    let bytes = &summary.bytes;
    let features = summary.features;
    let mut rows = vec![
        ("ours", "encrypted input", format!("{features} features, packed"), bytes.ciphertext_up),
        ("ours", "… in its frame", "with identity, session, digest".to_owned(), bytes.frame_up),
        ("ours", "encrypted result", "scores, packed".to_owned(), bytes.ciphertext_down),
        ("ours", "… in its frame", "with identity, session, digest".to_owned(), bytes.frame_down),
        ("ours", "evaluation keys", "once per session".to_owned(), summary.opening.key_bytes),
        ("other", "readings in plaintext", format!("{READINGS} × 64 bits"), bytes.plain),
    ];
    if let (Some(of_features), Some(window)) = (summary.naive_features(), summary.naive_window()) {
        let detail = |values: u64| format!("{values} × CompressedFheInt16");
        rows.push(("other", "features, naive encoding", detail(features), of_features));
        rows.push(("other", "readings, naive encoding", detail(READINGS), window));
    }
    let most = rows.iter().map(|row| exponent(row.3)).fold(1.0, f64::max).ceil();
    let x = |exponent: f64| LEFT + exponent / most * (RIGHT - LEFT);
    let bottom = ROW * number(rows.len()) + 6.0;
    let mut svg = Svg::new(WIDTH, bottom + 24.0, "Bytes per job, on a logarithmic axis");
    for (power, label) in DECADES {
        if power <= most {
            svg.line("grid", (x(power), 0.0), (x(power), bottom));
            svg.text("middle", (x(power), bottom + 18.0), label);
        }
    }
    for (index, (class, name, detail, bytes)) in rows.iter().enumerate() {
        let top = ROW * number(index) + 4.0;
        svg.text("strong", (0.0, top + 14.0), name);
        svg.text("", (0.0, top + 29.0), detail);
        let end = x(exponent(*bytes));
        svg.bar(class, (LEFT, top + 5.0), end - LEFT, 20.0);
        svg.text("strong", (end + 8.0, top + 20.0), &format!("{} B", grouped(*bytes)));
    }
    svg.finish()
}

const DECADES: [(f64, &str); 10] = [
    (0.0, "1 B"),
    (1.0, "10 B"),
    (2.0, "100 B"),
    (3.0, "1 kB"),
    (4.0, "10 kB"),
    (5.0, "100 kB"),
    (6.0, "1 MB"),
    (7.0, "10 MB"),
    (8.0, "100 MB"),
    (9.0, "1 GB"),
];

/// The decimal logarithm of a number of bytes.
fn exponent(bytes: u64) -> f64 {
    f64::from(u32::try_from(bytes).unwrap_or(u32::MAX)).max(1.0).log10()
}
