//! The Robot Execution Failures recordings: force and torque at a robot's wrist during 463 grasps.
//!
//! Lopes and Camarinha-Matos (1998), DOI 10.24432/C5M89N, CC BY 4.0.

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// Samples per trial.
pub const SAMPLES: usize = 15;
/// Channels per sample: Fx, Fy, Fz, Tx, Ty, Tz.
pub const CHANNELS: usize = 6;
/// The learning problems, in the order that decides which of two equal signals counts.
pub const FILES: [&str; 5] = ["lp1.data", "lp2.data", "lp3.data", "lp4.data", "lp5.data"];

/// One recorded grasp.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trial {
    /// The file it comes from.
    pub file: &'static str,
    /// Its label there, such as `fr_collision`.
    pub label: String,
    /// Integers without a documented unit, between -3617 and 1016.
    pub samples: [[i16; CHANNELS]; SAMPLES],
}

/// What became of the grasp.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    /// It succeeded.
    Normal,
    /// The gripper, the part or the tool hit something.
    Collision,
    /// Something was in the way all along.
    Obstruction,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Normal => "normal",
            Self::Collision => "collision",
            Self::Obstruction => "obstruction",
        })
    }
}

impl Trial {
    /// The label in three classes.
    ///
    /// None for the labels of lp3 (part moved or lost): its signals are those of lp2, where they
    /// have a label that says more.
    #[must_use]
    pub fn outcome(&self) -> Option<Outcome> {
        let label = self.label.as_str();
        if matches!(label, "normal" | "ok") {
            Some(Outcome::Normal)
        } else if label.contains("obstruction") {
            Some(Outcome::Obstruction)
        } else if label.contains("collision") || label.ends_with("_col") {
            Some(Outcome::Collision)
        } else {
            None
        }
    }
}

/// Where the recordings lie in the repository.
#[must_use]
pub fn directory() -> PathBuf {
    crate::repository().join("data/robot-execution-failures")
}

/// Reads all five files.
///
/// # Errors
/// A file is missing or is not in the documented format.
pub fn load(directory: &Path) -> Result<Vec<Trial>> {
    let mut trials = Vec::new();
    for file in FILES {
        let path = directory.join(file);
        let text = fs::read_to_string(&path)
            .with_context(|| format!("cannot read the recordings in {}", path.display()))?;
        trials.extend(parse(file, &text).with_context(|| format!("in {}", path.display()))?);
    }
    Ok(trials)
}

/// Keeps the first trial of each signal: lp3 repeats lp2, lp5 repeats lp2 and lp4.
#[must_use]
pub fn distinct(mut trials: Vec<Trial>) -> Vec<Trial> {
    let mut seen = HashSet::new();
    trials.retain(|trial| seen.insert(trial.samples));
    trials
}

/// A label line, then 15 lines of 6 integers; blank lines between trials.
fn parse(file: &'static str, text: &str) -> Result<Vec<Trial>> {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let mut trials = Vec::new();
    while let Some(label) = lines.next() {
        ensure!(label.contains(char::is_alphabetic), "no label before \"{label}\"");
        let mut samples = [[0; CHANNELS]; SAMPLES];
        for sample in &mut samples {
            let line = lines.next().with_context(|| format!("\"{label}\" ends early"))?;
            let mut numbers = line.split_whitespace();
            for value in sample.iter_mut() {
                let number = numbers.next().with_context(|| format!("too short: \"{line}\""))?;
                *value = number.parse().with_context(|| format!("no number: \"{number}\""))?;
            }
            ensure!(numbers.next().is_none(), "too long: \"{line}\"");
        }
        trials.push(Trial { file, label: label.to_owned(), samples });
    }
    Ok(trials)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_463_trials_of_which_251_are_distinct_and_have_an_outcome() {
        let trials = load(&directory()).unwrap();
        assert_eq!(trials.len(), 463);
        let values = || trials.iter().flat_map(|trial| trial.samples.as_flattened());
        assert_eq!((values().min(), values().max()), (Some(&-3617), Some(&1016)));
        let distinct = distinct(trials);
        assert_eq!(distinct.len(), 251);
        assert!(distinct.iter().all(|trial| trial.outcome().is_some()));
    }

    #[test]
    fn a_damaged_file_is_refused() {
        let good = format!("normal\n{}", "1 2 3 4 5 6\n".repeat(15));
        assert_eq!(parse("lp1.data", &good).unwrap().len(), 1);
        let short = good.replacen("6\n", "\n", 1);
        let early = good.replacen("1 2 3 4 5 6\n", "", 1);
        let unlabelled = good.replacen("normal", "1 2 3 4 5 6", 1);
        for damaged in [short, early, unlabelled, good.replace('6', "6 7"), good.replace('6', "x")]
        {
            assert!(parse("lp1.data", &damaged).is_err(), "{damaged}");
        }
    }
}
