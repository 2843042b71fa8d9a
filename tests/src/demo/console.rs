//! What the demo says while it runs: numbered steps and a progress bar.
//!
//! Finished steps go to standard output; what moves goes to standard error, and only if that is a
//! terminal. Without one, progress is a plain line now and then.

use std::borrow::Cow;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};

use super::statistics::readable;

/// How many lines a whole run of progress is, where there is no terminal.
const PLAIN_LINES: usize = 8;

/// The numbered steps.
#[derive(Debug)]
pub struct Steps {
    done: usize,
    total: usize,
}

impl Steps {
    /// A run of `total` steps.
    #[must_use]
    pub fn new(total: usize) -> Self {
        Self { done: 0, total }
    }

    /// Waits for one step and prints its name, its time and what `detail` says about its outcome.
    ///
    /// # Errors
    /// The step fails; the error names it.
    pub async fn run<T>(
        &mut self,
        name: &str,
        work: impl Future<Output = Result<T>>,
        detail: impl FnOnce(&T) -> String,
    ) -> Result<T> {
        self.done += 1;
        let width = format!("{0}/{0}", self.total).len();
        let number = format!("{:>width$}", format!("{}/{}", self.done, self.total));
        let spinner = moving(ProgressBar::new_spinner(), "  {prefix}  {spinner} {msg} {elapsed}");
        spinner.set_prefix(number.clone());
        spinner.set_message(name.to_owned());
        spinner.enable_steady_tick(Duration::from_millis(100));
        let started = Instant::now();
        let outcome =
            work.await.with_context(|| format!("step {} failed: {name}", number.trim_start()))?;
        let time = readable(started.elapsed());
        spinner.finish_and_clear();
        println!("  {number}  {name:<30} {time:>8}   {}", detail(&outcome));
        Ok(outcome)
    }
}

/// How far the play is.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    total: usize,
    plain: bool,
}

impl Progress {
    /// Nothing of `total` is done.
    #[must_use]
    pub fn new(total: usize) -> Self {
        let bar = ProgressBar::new(total as u64);
        let bar = moving(bar, "  {bar:24} {pos}/{len}  {msg}  about {eta} left");
        bar.set_message("waiting for the first decision");
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { bar, total, plain: !std::io::stderr().is_terminal() }
    }

    /// `done` are done, of which `agree` agree; `last` is the last one's decision and time.
    pub fn update(&self, done: usize, agree: usize, last: &str) {
        let agreement = match done - agree {
            0 => Cow::Borrowed("all agree"),
            some => Cow::Owned(format!("{some} DISAGREE")),
        };
        self.bar.set_message(format!("{agreement}, {last}"));
        self.bar.set_position(done as u64);
        let line = |count: usize| count * PLAIN_LINES / self.total.max(1);
        if self.plain && line(done) > line(done.saturating_sub(1)) {
            println!("       {done} of {} jobs, {agreement}, last: {last}", self.total);
        }
    }
}

/// A bar or spinner that vanishes when it is dropped, and never shows without a terminal.
fn moving(bar: ProgressBar, template: &str) -> ProgressBar {
    // The templates are the constants above: a wrong one shows at the first start.
    let style = ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("━╸─");
    bar.with_style(style).with_finish(ProgressFinish::AndClear)
}
