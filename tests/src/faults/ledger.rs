//! What was sent against what came back.
//!
//! A window carries its number, and a right answer says the number's last digit (to base
//! [`super::load::DIGITS`]). Jobs of a session are numbered in the order in which the agent accepted
//! their windows, so windows and outcomes are two sequences in one order; the cheapest way to lay one
//! beside the other tells which windows have no outcome and which outcomes are wrong.
//!
//! Invariants:
//! - an outcome is counted against one window at most;
//! - a window without an outcome is explained by one refusal that names no job, or else it is a lost
//!   job if a number is missing in a session, or else one the agent never took;
//! - everything else that is not explained counts as wrong.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

/// A window that was published.
#[derive(Debug, Clone, Copy)]
pub struct Sent {
    /// Its number.
    pub number: u64,
    /// Whether the broker said that it has it for the agent. If not, the same window was published
    /// again, and both, one or none may have been taken.
    pub is_sure: bool,
    /// When it was published.
    pub at: Instant,
}

/// What the agent said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// An answer with this digit; none if it says something else.
    Digit(Option<u64>),
    /// A refusal with this code.
    Refused(String),
}

/// An outcome as it came.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The session it names; ids sort by age.
    pub session: Option<String>,
    /// The job it names.
    pub job: Option<u64>,
    /// What it says.
    pub verdict: Verdict,
    /// When it came.
    pub at: Instant,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let session = self.session.as_deref().unwrap_or("no session");
        write!(f, "job {:?} of {session}: {:?}", self.job, self.verdict)
    }
}

/// What came of a load.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Account {
    /// Windows sent.
    pub sent: usize,
    /// Windows with a right answer.
    pub answered: usize,
    /// Windows refused with an error.
    pub refused: usize,
    /// Codes of the refusals, and how many there were of each.
    pub codes: BTreeMap<String, usize>,
    /// Windows that the onboard broker had taken and no job stands for. The agent never had them.
    pub untaken: usize,
    /// Jobs without an outcome.
    pub lost: usize,
    /// Outcomes that came again.
    pub doubled: usize,
    /// Answers to another question, and two different outcomes of one job.
    pub wrong: usize,
    /// Longest time from a window to its answer.
    pub slowest: Duration,
    /// What is wrong, one by one.
    pub remarks: Vec<String>,
}

/// Cost of a window without an outcome.
const NO_OUTCOME: u32 = 10;
/// Cost of one that may have been published for nothing.
const UNSURE: u32 = 1;
/// Cost of an answer to another window.
const WRONG: u32 = 25;
/// Cost of an outcome for which there is no window.
const INVENTED: u32 = 40;

/// Counts the outcomes against the windows.
#[must_use]
pub fn account(digits: u64, sent: &[Sent], outcomes: &[Outcome]) -> Account {
    let mut account =
        Account { sent: sent.iter().filter(|sent| sent.is_sure).count(), ..Account::default() };
    let mut jobs: BTreeMap<(String, u64), &Outcome> = BTreeMap::new();
    let mut refused_unnumbered = 0;
    for outcome in outcomes {
        if let Verdict::Refused(code) = &outcome.verdict {
            *account.codes.entry(code.clone()).or_default() += 1;
        }
        match (&outcome.session, outcome.job) {
            (Some(session), Some(job)) => match jobs.get(&(session.clone(), job)) {
                None => drop(jobs.insert((session.clone(), job), outcome)),
                Some(first) if first.verdict == outcome.verdict => account.doubled += 1,
                Some(first) => {
                    account.wrong += 1;
                    account.remarks.push(format!(
                        "job {job} of {session} ended as {:?} and as {:?}",
                        first.verdict, outcome.verdict
                    ));
                }
            },
            _ => refused_unnumbered += 1,
        }
    }
    let gaps = gaps(jobs.keys());
    let outcomes: Vec<&Outcome> = jobs.into_values().collect();
    let mut silent = 0;
    for step in align(digits, sent, &outcomes) {
        match step {
            Step::Skip(sent) if sent.is_sure => silent += 1,
            Step::Skip(_) => {}
            Step::Invented(outcome) => {
                account.wrong += 1;
                account.remarks.push(format!("no window has this outcome: {outcome}"));
            }
            Step::Pair(sent, outcome) => match &outcome.verdict {
                Verdict::Refused(_) => account.refused += 1,
                Verdict::Digit(digit) if *digit == Some(sent.number % digits) => {
                    account.answered += 1;
                    let took = outcome.at.saturating_duration_since(sent.at);
                    account.slowest = account.slowest.max(took);
                }
                Verdict::Digit(_) => {
                    account.wrong += 1;
                    account.remarks.push(format!("window {} has {outcome}", sent.number));
                }
            },
        }
    }
    // A number is not used again when its job could not be kept, so a gap alone is no loss.
    let explained = silent.min(refused_unnumbered);
    account.refused += explained;
    account.lost = gaps.min(silent - explained);
    account.untaken = silent - explained - account.lost;
    account
}

/// How many numbers below the largest of each session are missing.
fn gaps<'a>(jobs: impl Iterator<Item = &'a (String, u64)>) -> usize {
    let mut sessions: HashMap<&str, (u64, u64)> = HashMap::new();
    for (session, job) in jobs {
        let (count, largest) = sessions.entry(session).or_default();
        *count += 1;
        *largest = (*largest).max(*job);
    }
    let missing = sessions.values().map(|(count, largest)| largest.saturating_sub(*count));
    usize::try_from(missing.sum::<u64>()).unwrap_or(usize::MAX)
}

enum Step<'a> {
    Skip(&'a Sent),
    Invented(&'a Outcome),
    Pair(&'a Sent, &'a Outcome),
}

/// The cheapest order-preserving assignment of outcomes to windows (edit distance).
fn align<'a>(digits: u64, sent: &'a [Sent], outcomes: &[&'a Outcome]) -> Vec<Step<'a>> {
    let skip = |sent: &Sent| if sent.is_sure { NO_OUTCOME } else { UNSURE };
    let pair = |sent: &Sent, outcome: &Outcome| match &outcome.verdict {
        Verdict::Digit(digit) if *digit != Some(sent.number % digits) => WRONG,
        _ => 0,
    };
    let columns = outcomes.len() + 1;
    // cost[i * columns + j]: of everything from window i and outcome j on.
    let mut cost = vec![0_u32; (sent.len() + 1) * columns];
    let at = |cost: &[u32], i: usize, j: usize| cost.get(i * columns + j).copied().unwrap_or(0);
    for i in (0..=sent.len()).rev() {
        for j in (0..columns).rev() {
            let (window, outcome) = (sent.get(i), outcomes.get(j));
            let choices = [
                window.map(|window| skip(window) + at(&cost, i + 1, j)),
                outcome.map(|_| INVENTED + at(&cost, i, j + 1)),
                window.zip(outcome).map(|(w, o)| pair(w, o) + at(&cost, i + 1, j + 1)),
            ];
            if let (Some(best), Some(cell)) =
                (choices.into_iter().flatten().min(), cost.get_mut(i * columns + j))
            {
                *cell = best;
            }
        }
    }
    let (mut i, mut j, mut steps) = (0, 0, Vec::new());
    loop {
        let best = at(&cost, i, j);
        match (sent.get(i), outcomes.get(j)) {
            (Some(window), Some(outcome))
                if best == pair(window, outcome) + at(&cost, i + 1, j + 1) =>
            {
                steps.push(Step::Pair(window, outcome));
                (i, j) = (i + 1, j + 1);
            }
            (Some(window), _) if best == skip(window) + at(&cost, i + 1, j) => {
                steps.push(Step::Skip(window));
                i += 1;
            }
            (_, Some(outcome)) => {
                steps.push(Step::Invented(outcome));
                j += 1;
            }
            (_, None) => return steps,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGITS: u64 = 8;

    fn sent(numbers: impl IntoIterator<Item = u64>) -> Vec<Sent> {
        let at = Instant::now();
        numbers.into_iter().map(|number| Sent { number, is_sure: true, at }).collect()
    }

    fn answer(session: &str, job: u64, digit: u64) -> Outcome {
        Outcome {
            session: Some(session.to_owned()),
            job: Some(job),
            verdict: Verdict::Digit(Some(digit)),
            at: Instant::now(),
        }
    }

    fn refusal(code: &str) -> Outcome {
        let verdict = Verdict::Refused(code.to_owned());
        Outcome { session: None, job: None, verdict, at: Instant::now() }
    }

    fn answers(session: &str, numbers: impl IntoIterator<Item = u64>) -> Vec<Outcome> {
        let numbered = numbers.into_iter().zip(1..);
        numbered.map(|(number, job)| answer(session, job, number % DIGITS)).collect()
    }

    fn counts(account: &Account) -> [usize; 6] {
        let Account { answered, refused, untaken, lost, doubled, wrong, .. } = account;
        [*answered, *refused, *untaken, *lost, *doubled, *wrong]
    }

    #[test]
    fn everything_answered_in_any_order_of_arrival_and_over_a_renewal() {
        let mut outcomes = answers("a", 0..20);
        outcomes.extend(answers("b", 20..40));
        outcomes.reverse();
        let account = account(DIGITS, &sent(0..40), &outcomes);
        assert_eq!(counts(&account), [40, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_job_without_an_outcome_is_lost_and_one_with_two_is_doubled() {
        let mut outcomes = answers("a", 0..40);
        let again = outcomes[30].clone();
        outcomes.remove(12);
        outcomes.push(again);
        let account = account(DIGITS, &sent(0..40), &outcomes);
        assert_eq!(counts(&account), [39, 0, 0, 1, 1, 0]);
    }

    #[test]
    fn a_wrong_answer_an_invented_one_and_a_contradiction_are_wrong() {
        let mut outcomes = answers("a", 0..40);
        outcomes[7].verdict = Verdict::Digit(Some(3));
        assert_eq!(counts(&account(DIGITS, &sent(0..40), &outcomes)), [39, 0, 0, 0, 0, 1]);
        let invented = account(DIGITS, &sent(0..40), &answers("a", 0..41));
        assert_eq!(counts(&invented), [40, 0, 0, 0, 0, 1]);
        let mut outcomes = answers("a", 0..40);
        outcomes.push(Outcome { verdict: Verdict::Digit(Some(7)), ..outcomes[3].clone() });
        assert_eq!(counts(&account(DIGITS, &sent(0..40), &outcomes)), [40, 0, 0, 0, 0, 1]);
        let mut outcomes = answers("a", 0..40);
        outcomes[5].verdict = Verdict::Digit(None);
        assert_eq!(counts(&account(DIGITS, &sent(0..40), &outcomes)), [39, 0, 0, 0, 0, 1]);
    }

    #[test]
    fn windows_the_agent_never_had_are_told_from_refused_ones() {
        let taken = (0..40).filter(|number| ![9, 10, 22].contains(number));
        let mut outcomes = answers("a", taken);
        assert_eq!(counts(&account(DIGITS, &sent(0..40), &outcomes)), [37, 0, 3, 0, 0, 0]);
        outcomes.push(refusal("no_session"));
        outcomes.push(refusal("no_session"));
        let account = account(DIGITS, &sent(0..40), &outcomes);
        assert_eq!(counts(&account), [37, 2, 1, 0, 0, 0]);
        assert_eq!(account.codes, BTreeMap::from([("no_session".to_owned(), 2)]));
    }

    #[test]
    fn a_refused_window_explains_the_number_that_was_wasted_on_it() {
        let mut outcomes = answers("a", 0..40);
        outcomes.remove(12);
        outcomes.push(refusal("not_spooled"));
        assert_eq!(counts(&account(DIGITS, &sent(0..40), &outcomes)), [39, 1, 0, 0, 0, 0]);
        outcomes.remove(20);
        assert_eq!(counts(&account(DIGITS, &sent(0..40), &outcomes)), [38, 1, 0, 1, 0, 0]);
    }

    #[test]
    fn a_window_published_twice_in_doubt_may_be_answered_once_or_twice() {
        let mut windows = sent([0, 1, 2, 3, 3, 4, 5]);
        windows[3].is_sure = false;
        let twice = account(DIGITS, &windows, &answers("a", [0, 1, 2, 3, 3, 4, 5]));
        assert_eq!(counts(&twice), [7, 0, 0, 0, 0, 0]);
        let once = account(DIGITS, &windows, &answers("a", 0..6));
        assert_eq!(counts(&once), [6, 0, 0, 0, 0, 0]);
        assert_eq!(once.sent, 6);
    }

    #[test]
    fn a_job_that_was_refused_by_number_takes_its_window() {
        let mut outcomes = answers("a", 0..10);
        outcomes[4].verdict = Verdict::Refused("session_ended".to_owned());
        assert_eq!(counts(&account(DIGITS, &sent(0..10), &outcomes)), [9, 1, 0, 0, 0, 0]);
    }
}
