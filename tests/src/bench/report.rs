//! What was measured, as a table for people and as JSON for programs.
//!
//! Invariants:
//! - a figure stands beside what it is measured against, and a goal beside whether it was reached;
//! - a goal that was missed is shown, it fails nothing.

use std::fmt::{self, Write as _};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

/// One measured figure.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    section: &'static str,
    /// The case it was measured in, where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    case: Option<String>,
    name: String,
    value: f64,
    unit: &'static str,
    baseline: Option<Baseline>,
    ratio: Option<Ratio>,
    goal: Option<&'static str>,
    reached: Option<bool>,
}

/// What a figure is measured against, in the figure's unit.
#[derive(Debug, Clone, Serialize)]
struct Baseline {
    what: String,
    value: f64,
}

/// How figure and baseline compare.
#[derive(Debug, Clone, Copy, Serialize)]
struct Ratio {
    value: f64,
    meaning: &'static str,
}

impl Figure {
    /// A figure that stands by itself.
    #[must_use]
    pub fn new(
        section: &'static str,
        name: impl Into<String>,
        value: f64,
        unit: &'static str,
    ) -> Self {
        let (name, case, baseline, ratio) = (name.into(), None, None, None);
        Self { section, case, name, value, unit, baseline, ratio, goal: None, reached: None }
    }

    /// Says in which case it was measured: figures of several cases are shown side by side.
    #[must_use]
    pub fn of(mut self, case: impl Into<String>) -> Self {
        self.case = Some(case.into());
        self
    }

    /// Puts a baseline beside it; `ratio` with its `meaning` reads like "12 times fewer".
    #[must_use]
    pub fn against(
        mut self,
        what: impl Into<String>,
        value: f64,
        ratio: f64,
        meaning: &'static str,
    ) -> Self {
        self.baseline = Some(Baseline { what: what.into(), value });
        self.ratio = Some(Ratio { value: ratio, meaning });
        self
    }

    /// Puts a goal beside it.
    #[must_use]
    pub fn goal(mut self, goal: &'static str, reached: bool) -> Self {
        self.goal = Some(goal);
        self.reached = Some(reached);
        self
    }

    fn cells(&self) -> [String; 6] {
        let baseline = self
            .baseline
            .as_ref()
            .map(|baseline| format!("{} ({})", quantity(baseline.value, self.unit), baseline.what));
        let ratio = self.ratio.map(|ratio| format!("{} {}", number(ratio.value), ratio.meaning));
        let reached = self.reached.map(|reached| if reached { "yes" } else { "NO" }.to_owned());
        [
            self.name.clone(),
            quantity(self.value, self.unit),
            baseline.unwrap_or_default(),
            ratio.unwrap_or_default(),
            self.goal.unwrap_or_default().to_owned(),
            reached.unwrap_or_default(),
        ]
    }
}

/// The conditions of a run.
#[derive(Debug, Clone, Serialize)]
pub struct Conditions {
    /// Whether repetitions were saved.
    pub quick: bool,
    /// How the code was compiled.
    pub profile: &'static str,
    /// The processor's name.
    pub processor: String,
    /// How many processors there are.
    pub processors: usize,
    /// Processes that wanted a processor, averaged over the minute before the run.
    pub load: String,
}

impl Conditions {
    /// Those of now.
    #[must_use]
    pub fn now(quick: bool) -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model =
            cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Self {
            quick,
            profile: if cfg!(debug_assertions) {
                "dev profile: what is measured is at opt-level 3 (dependencies, moai-fhe, moai-agent, moai-transport), the rest at 1"
            } else {
                "release profile"
            },
            processor: model.map_or("unknown", |(_, name)| name.trim()).to_owned(),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            load: load.split(' ').next().unwrap_or("unknown").to_owned(),
        }
    }
}

/// Everything a run has measured.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    conditions: Conditions,
    figures: Vec<Figure>,
    notes: Vec<(&'static str, String)>,
}

impl Report {
    /// An empty report.
    #[must_use]
    pub fn new(conditions: Conditions) -> Self {
        Self { conditions, figures: Vec::new(), notes: Vec::new() }
    }

    /// Adds a figure.
    pub fn add(&mut self, figure: Figure) {
        self.figures.push(figure);
    }

    /// Adds what one has to know to read a section's figures.
    pub fn note(&mut self, section: &'static str, text: impl Into<String>) {
        self.notes.push((section, text.into()));
    }

    /// Writes the JSON.
    ///
    /// # Errors
    /// The file or its directory cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let context = || format!("cannot write {}", path.display());
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).with_context(context)?;
        }
        fs::write(path, serde_json::to_string_pretty(self)? + "\n").with_context(context)
    }
}

const HEADINGS: [&str; 6] = ["figure", "value", "baseline", "ratio", "goal", "reached"];

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Conditions { quick, profile, processor, processors, load } = &self.conditions;
        writeln!(f, "{processor}, {processors} processors, load {load} before the run")?;
        writeln!(f, "{profile}")?;
        writeln!(
            f,
            "medians; a ratio is the median of the ratios of rounds in which both took turns"
        )?;
        if *quick {
            writeln!(f, "quick run: few repetitions, take the figures as a hint")?;
        }
        let single: Vec<_> = self.figures.iter().filter(|figure| figure.case.is_none()).collect();
        let rows: Vec<_> = single.iter().map(|figure| figure.cells()).collect();
        let mut widths = HEADINGS.map(str::len);
        for (cell, width) in rows.iter().flat_map(|row| row.iter().zip(0..)) {
            if let Some(width) = widths.get_mut(width) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut section = "";
        for (figure, row) in single.into_iter().zip(&rows) {
            if figure.section != section {
                self.write_notes(f, section)?;
                section = figure.section;
                writeln!(f, "\n{}", section.to_uppercase())?;
                writeln!(f, "{}", line(&HEADINGS.map(str::to_owned), &widths))?;
            }
            writeln!(f, "{}", line(row, &widths))?;
        }
        self.write_notes(f, section)?;
        self.write_grids(f)?;
        let goals = || self.figures.iter().filter_map(|figure| figure.reached);
        let reached = goals().filter(|reached| *reached).count();
        writeln!(f, "\n{reached} of {} goals reached", goals().count())
    }
}

impl Report {
    /// The figures of sections that have cases: a row for each name, a column for each case.
    fn write_grids(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let figures = || self.figures.iter().filter(|figure| figure.case.is_some());
        for section in distinct(figures().map(|figure| figure.section)) {
            let figures = || figures().filter(move |figure| figure.section == section);
            let cases = distinct(figures().filter_map(|figure| figure.case.as_deref()));
            let names = distinct(figures().map(|figure| figure.name.as_str()));
            let mut rows = vec![Vec::from([String::new()])];
            rows.extend(names.iter().map(|name| vec![(*name).to_owned()]));
            if let Some(heading) = rows.first_mut() {
                heading.extend(cases.iter().map(ToString::to_string));
            }
            for (row, name) in rows.iter_mut().skip(1).zip(&names) {
                row.extend(cases.iter().map(|case| {
                    let found =
                        figures().find(|it| it.name == *name && it.case.as_deref() == Some(*case));
                    found.map_or(String::new(), |it| quantity(it.value, it.unit))
                }));
            }
            writeln!(f, "\n{}", section.to_uppercase())?;
            write_grid(f, &rows)?;
            self.write_notes(f, section)?;
        }
        Ok(())
    }

    fn write_notes(&self, f: &mut fmt::Formatter<'_>, section: &str) -> fmt::Result {
        self.notes
            .iter()
            .filter(|(of, _)| *of == section)
            .try_for_each(|(_, text)| writeln!(f, "  * {text}"))
    }
}

/// What there is, each once, in the order of its first occurrence.
fn distinct<'a>(all: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut distinct = Vec::new();
    for one in all {
        if !distinct.contains(&one) {
            distinct.push(one);
        }
    }
    distinct
}

/// Names to the left, everything else to the right.
fn write_grid(f: &mut fmt::Formatter<'_>, rows: &[Vec<String>]) -> fmt::Result {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in rows {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            if column == 0 {
                write!(f, "  {cell:<width$}")?;
            } else {
                write!(f, "  {cell:>width$}")?;
            }
        }
        writeln!(f)?;
    }
    Ok(())
}

fn line(cells: &[String; 6], widths: &[usize; 6]) -> String {
    let mut line = String::new();
    for (column, (cell, width)) in cells.iter().zip(widths).enumerate() {
        // Writing to a String cannot fail. The value is aligned with its unit, the rest is text.
        let _ = if column == 1 {
            write!(line, "  {cell:>width$}")
        } else {
            write!(line, "  {cell:<width$}")
        };
    }
    line.trim_end().to_owned()
}

fn quantity(value: f64, unit: &str) -> String {
    if unit.is_empty() { number(value) } else { format!("{} {unit}", number(value)) }
}

/// Three significant digits, or all digits before the point with their thousands apart.
fn number(value: f64) -> String {
    if value.is_nan() || value.is_infinite() {
        return value.to_string();
    }
    if value == 0.0 {
        return "0".to_owned();
    }
    let decimals = [100.0, 10.0, 1.0, 0.1, 0.01].iter().filter(|bound| value.abs() < **bound);
    let text = format!("{value:.*}", decimals.count());
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) && !grouped.ends_with('-') {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    if fraction.is_empty() { grouped } else { format!("{grouped}.{fraction}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_or_are_whole() {
        for (value, text) in [
            (1_234_567.8, "1,234,568"),
            (-1234.0, "-1,234"),
            (-123.0, "-123"),
            (999.6, "1,000"),
            (12.34, "12.3"),
            (1.0, "1.00"),
            (0.012_34, "0.0123"),
            (0.0, "0"),
        ] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn cases_stand_side_by_side() {
        let mut report = Report::new(Conditions::now(true));
        for (case, value) in [("1 robot", 1.0), ("10 robots", 12.0)] {
            report.add(Figure::new("fleet", "memory", value, "MB").of(case));
        }
        report.add(Figure::new("fleet", "lost", 0.0, "").of("10 robots"));
        let text = report.to_string();
        let lines: Vec<&str> = text.lines().skip_while(|line| *line != "FLEET").skip(1).collect();
        let cells: Vec<Vec<&str>> = lines
            .iter()
            .map(|line| line.split("  ").filter(|it| !it.is_empty()).collect())
            .collect();
        assert_eq!(cells[0], ["1 robot", "10 robots"].map(str::trim), "{text}");
        assert_eq!(lines[1], "  memory  1.00 MB    12.0 MB", "{text}");
        assert_eq!(lines[2].split_ascii_whitespace().collect::<Vec<_>>(), ["lost", "0"]);
    }

    #[test]
    fn a_table_shows_baseline_goal_and_notes() {
        let mut report = Report::new(Conditions::now(true));
        let figure =
            Figure::new("upload", "a key", 90.0, "MB/s").against("bare", 100.0, 0.9, "of it");
        report.add(figure.clone().goal("≥ 0.8", true));
        report.add(figure.goal("≥ 0.95", false));
        report.note("upload", "through mosquitto");
        let text = report.to_string();
        for part in ["UPLOAD", "90.0 MB/s", "100 MB/s (bare)", "0.900 of it", "yes", "NO"] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert!(text.contains("* through mosquitto") && text.contains("1 of 2 goals reached"));
    }
}
