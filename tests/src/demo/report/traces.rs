//! Recorded grasps with their decisions, as small multiples.

use std::fmt::Write as _;

use super::svg::{Svg, escape, number};
use crate::demo::play::Job;
use crate::recordings::SAMPLES;

/// At most this many of each class.
const PER_CLASS: usize = 2;
const WIDTH: f64 = 340.0;
const HEIGHT: f64 = 132.0;
const LEFT: f64 = 46.0;
const RIGHT: f64 = WIDTH - 8.0;
const TOP: f64 = 22.0;
const BOTTOM: f64 = HEIGHT - 20.0;
const TICKS: [i16; 7] = [-1000, -100, -10, 0, 10, 100, 1000];

/// The cards of a few jobs, classes in the order of `labels`.
#[must_use]
pub(super) fn html(jobs: &[Job], labels: &[String]) -> String {
    let chosen: Vec<&Job> = labels
        .iter()
        .flat_map(|label| {
            let class: Vec<&Job> = jobs.iter().filter(|job| job.truth == *label).collect();
            // Far apart in the play, so that they show different tasks of the arm.
            let apart = class.len().div_ceil(PER_CLASS).max(1);
            class.into_iter().step_by(apart)
        })
        .collect();
    let scales = [Scale::of(&chosen, 0), Scale::of(&chosen, 3)];
    let mut html = String::from("<div class=\"traces\">");
    for job in chosen {
        let agreement = if job.agrees() {
            "<span class=\"good\">✓ same in plaintext</span>".to_owned()
        } else {
            format!("<span class=\"bad\">plaintext model: {}</span>", escape(&job.clear))
        };
        // Writing to a String cannot fail.
        let _ = write!(
            html,
            "<div class=\"card\"><div class=\"head\"><h3>{name}</h3>\
             <span>labelled {label}</span></div>{force}{torque}\
             <p class=\"verdict\">Decision: <b>{decision}</b> {agreement}</p></div>",
            name = escape(&job.grasp.name),
            label = escape(&job.grasp.trial.label),
            force = plot(job, 0, "Force", &scales[0]),
            torque = plot(job, 3, "Torque", &scales[1]),
            decision = escape(&job.answer.label),
        );
    }
    html + "</div>"
}

/// A signed logarithmic axis, sign(x) · ln(1 + |x|), shared by all cards.
struct Scale {
    low: f64,
    high: f64,
}

impl Scale {
    fn of(jobs: &[&Job], first: usize) -> Self {
        let values = jobs.iter().flat_map(|job| &job.grasp.trial.samples);
        let values = values.flat_map(|sample| sample.iter().skip(first).take(3));
        let scaled = values.map(|value| compress(*value));
        let (low, high) =
            scaled.fold((0.0_f64, 0.0_f64), |(low, high), value| (low.min(value), high.max(value)));
        Self { low: low - 0.3, high: high + 0.3 }
    }

    fn y(&self, value: i16) -> f64 {
        BOTTOM - (compress(value) - self.low) / (self.high - self.low) * (BOTTOM - TOP)
    }
}

fn compress(value: i16) -> f64 {
    let value = f64::from(value);
    value.signum() * value.abs().ln_1p()
}

fn plot(job: &Job, first: usize, what: &str, scale: &Scale) -> String {
    let label = format!("{what} of {} over {SAMPLES} samples", job.grasp.name);
    let mut svg = Svg::new(WIDTH, HEIGHT, &label);
    svg.text("ink", (LEFT, 13.0), what);
    for tick in TICKS {
        let y = scale.y(tick);
        if (TOP..=BOTTOM).contains(&y) {
            svg.line(if tick == 0 { "zero" } else { "grid" }, (LEFT, y), (RIGHT, y));
            svg.text("end", (LEFT - 6.0, y + 4.0), &tick.to_string().replace('-', "−"));
        }
    }
    let x = |sample: usize| LEFT + number(sample) / number(SAMPLES - 1) * (RIGHT - LEFT);
    for sample in [1, 5, 10, 15] {
        let class = if sample == SAMPLES { "end" } else { "middle" };
        svg.text(class, (x(sample - 1), HEIGHT - 4.0), &sample.to_string());
    }
    for (axis, class) in ["a", "b", "c"].into_iter().enumerate() {
        let samples = job.grasp.trial.samples.iter().enumerate();
        let points = samples.filter_map(|(index, sample)| {
            sample.get(first + axis).map(|value| (x(index), scale.y(*value)))
        });
        svg.trace(class, points);
    }
    svg.finish()
}
