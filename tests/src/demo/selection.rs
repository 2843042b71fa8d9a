//! Which of the recorded grasps are played.
//!
//! Invariants:
//! - the same number always selects the same grasps;
//! - every class has its share, rounded by the largest remainder, and classes take turns.

use std::collections::HashMap;

use anyhow::{Context, Result};

use crate::recordings::{self, Outcome, Trial};

/// A recorded grasp with its place in the data set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grasp {
    /// File and number of the trial in it, from 1, such as `lp1:17`.
    pub name: String,
    /// Its label, in three classes.
    pub outcome: Outcome,
    /// The recording.
    pub trial: Trial,
}

/// All distinct recordings.
///
/// # Errors
/// The data set is missing or damaged.
pub fn load() -> Result<Vec<Grasp>> {
    let trials = recordings::load(&recordings::directory())?;
    let mut names = HashMap::new();
    let mut counts = HashMap::<_, usize>::new();
    for trial in &trials {
        let number = counts.entry(trial.file).or_default();
        *number += 1;
        let problem = trial.file.trim_end_matches(".data");
        names.entry(trial.samples).or_insert_with(|| format!("{problem}:{number}"));
    }
    recordings::distinct(trials)
        .into_iter()
        .map(|trial| {
            let name = names.get(&trial.samples).cloned().unwrap_or_default();
            let outcome =
                trial.outcome().with_context(|| format!("{name} has no class: {}", trial.label))?;
            Ok(Grasp { name, outcome, trial })
        })
        .collect()
}

/// Selects `wanted` grasps, or all if there are fewer.
#[must_use]
pub fn stratified(grasps: &[Grasp], wanted: usize) -> Vec<Grasp> {
    let wanted = wanted.min(grasps.len());
    let mut classes: Vec<Vec<&Grasp>> = [Outcome::Normal, Outcome::Collision, Outcome::Obstruction]
        .map(|class| grasps.iter().filter(|grasp| grasp.outcome == class).collect())
        .into();
    classes.retain(|class| !class.is_empty());
    let sizes: Vec<usize> = classes.iter().map(Vec::len).collect();
    let mut chosen = Vec::new();
    for (class, share) in classes.iter().zip(shares(&sizes, wanted)) {
        for turn in 0..share {
            // Two fractions as cross products: the place in the class, the place in the play.
            let place = turn * class.len() / share;
            let order = (2 * turn + 1) * 1_000_000 / (2 * share);
            chosen.extend(class.get(place).map(|grasp| (order, (*grasp).clone())));
        }
    }
    chosen.sort_by_key(|(order, _)| *order);
    chosen.into_iter().map(|(_, grasp)| grasp).collect()
}

/// Splits `wanted` in proportion to `sizes`; what is left over goes to the largest remainders.
fn shares(sizes: &[usize], wanted: usize) -> Vec<usize> {
    let total = sizes.iter().sum::<usize>().max(1);
    let mut shares: Vec<usize> = sizes.iter().map(|size| size * wanted / total).collect();
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by_key(|class| {
        std::cmp::Reverse(sizes.get(*class).map_or(0, |size| size * wanted % total))
    });
    let left = wanted - shares.iter().sum::<usize>();
    for class in order.into_iter().take(left) {
        if let Some(share) = shares.get_mut(class) {
            *share += 1;
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn forty_trials_are_distinct_and_have_every_class_in_proportion() {
        let all = load().unwrap();
        let chosen = stratified(&all, 40);
        let count = |class| chosen.iter().filter(|grasp| grasp.outcome == class).count();
        // 65, 131 and 55 of 251.
        assert_eq!(
            [Outcome::Normal, Outcome::Collision, Outcome::Obstruction].map(count),
            [10, 21, 9]
        );
        let names: HashSet<_> = chosen.iter().map(|grasp| &grasp.name).collect();
        assert_eq!(names.len(), 40);
        let early: HashSet<_> = chosen.iter().take(5).map(|grasp| grasp.outcome).collect();
        assert_eq!(early.len(), 3, "classes take turns");
        assert_eq!(chosen, stratified(&all, 40));
    }

    #[test]
    fn any_number_selects_that_many() {
        let all = load().unwrap();
        assert_eq!(all.len(), 251);
        for wanted in [1, 2, 3, 7, 100, 250, 251] {
            assert_eq!(stratified(&all, wanted).len(), wanted);
        }
        assert_eq!(stratified(&all, 1000).len(), 251);
    }
}
