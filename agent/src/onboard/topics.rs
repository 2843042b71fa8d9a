//! The topics of the onboard API.
//!
//! Invariants:
//! - whatever the agent publishes onboard has its topic from here;
//! - an answer never goes to a topic the agent reads, so that nothing goes round in circles.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use moai_transport::ids::TaskId;
use tokio::sync::watch;

use crate::config::DeclaredTask;

/// Longest name of a topic that onboard software may choose, in bytes.
pub(super) const MAX_TOPIC_LEN: usize = 256;

/// A topic that can be published to: no wildcard, and none of the broker's own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct TopicName(String);

impl TopicName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TopicName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() || text.len() > MAX_TOPIC_LEN {
            Err("a topic has 1 to 256 bytes")
        } else if text.contains(['+', '#', '\0']) {
            Err("a topic to name has no wildcards; name each topic")
        } else if text.starts_with('$') {
            Err("topics that begin with $ are the broker's own")
        } else {
            Ok(Self(text.to_owned()))
        }
    }
}

impl std::fmt::Display for TopicName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a message of the API asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Open a task.
    Open,
    /// Take samples.
    Input,
    /// Go on with a new session.
    Rotate,
    /// Close the task.
    Close,
}

impl Verb {
    const ALL: [Self; 4] = [Self::Open, Self::Input, Self::Rotate, Self::Close];

    fn level(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Input => "input",
            Self::Rotate => "rotate",
            Self::Close => "close",
        }
    }

    /// Whether a message may be taken that the broker had retained. An `open` may: it stands until it
    /// is taken back. Everything else was meant for its moment, and would come again with every
    /// connection.
    #[must_use]
    pub fn may_be_retained(self) -> bool {
        self == Self::Open
    }
}

/// The topics, as configured.
#[derive(Debug)]
pub struct Topics {
    prefix: String,
    declared: watch::Sender<Declared>,
}

/// What the configuration's tasks read and write beside the API.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Declared {
    results: BTreeMap<TaskId, TopicName>,
    read: BTreeSet<TopicName>,
}

impl Declared {
    fn of(tasks: &[DeclaredTask]) -> Self {
        let result = |task: &DeclaredTask| Some((task.id.clone(), task.result_topic.clone()?));
        let read = tasks.iter().flat_map(|task| &task.topics).map(|topic| topic.name.clone());
        Self { results: tasks.iter().filter_map(result).collect(), read: read.collect() }
    }
}

impl Topics {
    /// The API below `prefix`, and what the configuration's tasks read and write beside it.
    #[must_use]
    pub fn new(prefix: &str, declared: &[DeclaredTask]) -> Self {
        Self { prefix: prefix.to_owned(), declared: watch::Sender::new(Declared::of(declared)) }
    }

    /// Other tasks are the configuration's from now on.
    pub fn redeclare(&self, tasks: &[DeclaredTask]) {
        let next = Declared::of(tasks);
        self.declared.send_if_modified(|declared| {
            let is_other = *declared != next;
            *declared = next;
            is_other
        });
    }

    /// Tells when [`Topics::outcomes`] may have become others.
    #[must_use]
    pub fn declarations(&self) -> watch::Receiver<Declared> {
        self.declared.subscribe()
    }

    /// The task and the verb of a topic; `None` if it is none of the API's.
    #[must_use]
    pub fn parse(&self, topic: &str) -> Option<(TaskId, Verb)> {
        let rest = topic.strip_prefix(&self.prefix)?.strip_prefix("/task/")?;
        let (task, level) = rest.split_once('/')?;
        let verb = Verb::ALL.into_iter().find(|verb| verb.level() == level)?;
        Some((task.parse().ok()?, verb))
    }

    /// The task whose state is kept at a topic; `None` if none is.
    #[must_use]
    pub fn parse_state(&self, topic: &str) -> Option<TaskId> {
        let rest = topic.strip_prefix(&self.prefix)?.strip_prefix("/task/")?;
        rest.strip_suffix("/state")?.parse().ok()
    }

    /// What the agent listens to for all tasks. Their states too, which the broker keeps: an earlier
    /// run of the agent may have left one that is true no more.
    #[must_use]
    pub fn filters(&self) -> Vec<String> {
        let levels = Verb::ALL.iter().map(|verb| verb.level()).chain(["state"]);
        levels.map(|level| format!("{}/task/+/{level}", self.prefix)).collect()
    }

    /// Where one task's inputs are published.
    #[must_use]
    pub fn input(&self, task: &TaskId) -> String {
        self.of(task, "input")
    }

    /// Where a task's answers go.
    #[must_use]
    pub fn result(&self, task: &TaskId) -> String {
        let own = || self.of(task, "result");
        self.declared.borrow().results.get(task).map_or_else(own, ToString::to_string)
    }

    /// Where a task's refusals go.
    #[must_use]
    pub fn error(&self, task: &TaskId) -> String {
        self.of(task, "error")
    }

    /// Where a task's state is kept.
    #[must_use]
    pub fn state(&self, task: &TaskId) -> String {
        self.of(task, "state")
    }

    /// Where the agent's health is kept.
    #[must_use]
    pub fn health(&self) -> String {
        format!("{}/agent/health", self.prefix)
    }

    /// Where the agent tells itself that all its earlier messages have passed the broker.
    #[must_use]
    pub fn marker(&self) -> String {
        format!("{}/agent/marker", self.prefix)
    }

    /// Filters for everything that ends jobs, and the marker.
    #[must_use]
    pub fn outcomes(&self) -> Vec<String> {
        let own = ["result", "error"].map(|leaf| format!("{}/task/+/{leaf}", self.prefix));
        let declared = self.declared.borrow();
        let others = declared.results.values().map(ToString::to_string);
        own.into_iter().chain(others).chain([self.marker()]).collect()
    }

    /// Whether a topic is below the API's prefix.
    #[must_use]
    pub fn is_own(&self, topic: &str) -> bool {
        topic
            .strip_prefix(&self.prefix)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// Whether the agent reads a topic, or writes it for other reasons than to answer a request.
    #[must_use]
    pub fn is_taken(&self, topic: &TopicName) -> bool {
        let declared = self.declared.borrow();
        self.is_own(topic.as_str())
            || declared.read.contains(topic)
            || declared.results.values().any(|result| result == topic)
    }

    fn of(&self, task: &TaskId, leaf: &str) -> String {
        format!("{}/task/{task}/{leaf}", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_name_a_task_and_a_verb() {
        let topics = Topics::new("moai", &[]);
        let task: TaskId = "grasp".parse().unwrap();
        assert_eq!(topics.parse("moai/task/grasp/input"), Some((task, Verb::Input)));
        for topic in [
            "moai/task/grasp/result",
            "moai/task/a b/input",
            "moai/task/grasp/input/more",
            "moaimoai/task/grasp/input",
            "other/task/x/input",
        ] {
            assert_eq!(topics.parse(topic), None, "{topic}");
        }
    }

    #[test]
    fn only_an_open_may_have_been_retained() {
        assert!(Verb::Open.may_be_retained());
        assert!(![Verb::Input, Verb::Rotate, Verb::Close].into_iter().any(Verb::may_be_retained));
    }

    #[test]
    fn nobody_is_answered_on_a_topic_of_the_api() {
        let topics = Topics::new("robot/moai", &[]);
        for (topic, is_taken) in [
            ("robot/moai/task/arm/input", true),
            ("robot/moai", true),
            ("robot/moais", false),
            ("answers", false),
        ] {
            assert_eq!(topics.is_taken(&topic.parse().unwrap()), is_taken, "{topic}");
        }
    }

    #[test]
    fn a_topic_to_publish_to_has_no_wildcards() {
        let long = "x".repeat(MAX_TOPIC_LEN + 1);
        for name in ["", "a/+", "#", "a\0", "$SYS/x", &long] {
            assert!(name.parse::<TopicName>().is_err(), "{name}");
        }
    }
}
