//! `[[tasks]]`: tasks that open by themselves, on topics that exist already.
//!
//! Invariant: what can be known without the server is checked here. Whether the topics give the
//! channels that the model takes shows when the server's catalogue arrives.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::str::FromStr;
use std::time::Duration;

use moai_settings::Section;
use moai_transport::ids::{ModelId, TaskId};

use crate::onboard::{Format, MAX_CHANNELS, Pointer, TopicName, Topics};
use crate::spool::Order;
use crate::ttl::TtlClass;

const MAX_DECLARED: usize = 32;
const MAX_AGE_MS: u64 = 3_600_000;
const DEFAULT_AGE_MS: u64 = 1000;

/// A task of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeclaredTask {
    /// Its name.
    pub id: TaskId,
    /// The model it asks.
    pub model: ModelId,
    /// Lifetime class of its sessions.
    pub ttl: TtlClass,
    /// Whether its answers have the scores beside the label.
    pub scores: bool,
    /// The topics it reads, whose channels, one after the other, are the model's; none for the API's
    /// own input topic.
    pub topics: Vec<TaskTopic>,
    /// When the topics' values make a sample.
    pub join: Join,
    /// Where its answers go instead of the API's result topic.
    pub result_topic: Option<TopicName>,
    /// What happens to samples that come faster than they are taken.
    pub when_full: WhenFull,
    /// Which of its jobs go first, and which give way.
    pub order: Order,
    /// Whether onboard software may close it.
    pub closable: bool,
}

impl DeclaredTask {
    /// How many values make a sample, as far as the topics say.
    #[must_use]
    pub fn channels(&self) -> Option<usize> {
        let counts = self.topics.iter().map(|topic| topic.channels.count().map(NonZeroUsize::get));
        counts.sum::<Option<usize>>().filter(|count| *count > 0)
    }

    /// Whether another declaration of the task has the same samples.
    #[must_use]
    pub fn reads_like(&self, other: &Self) -> bool {
        (&self.topics, self.join) == (&other.topics, other.join)
    }
}

/// A topic that a declared task reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskTopic {
    /// The topic.
    pub name: TopicName,
    /// How its messages are written; told by their content type if not set.
    pub format: Option<Format>,
    /// What it gives.
    pub channels: TopicChannels,
}

/// The values of a topic's messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TopicChannels {
    /// The numbers at these places of a document.
    Pointers(Vec<Pointer>),
    /// Samples as the API's input topic takes them, of so many values.
    Samples(NonZeroUsize),
    /// Such samples, of as many values as the model takes.
    Whole,
}

impl TopicChannels {
    /// How many values it gives for a sample, if that is known.
    #[must_use]
    pub fn count(&self) -> Option<NonZeroUsize> {
        match self {
            Self::Pointers(pointers) => NonZeroUsize::new(pointers.len()),
            Self::Samples(count) => Some(*count),
            Self::Whole => None,
        }
    }
}

/// When the latest values of several topics make a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Join {
    /// When each topic has given new ones since the last sample.
    WhenAllAreFresh,
    /// Whenever this topic (by index) gives new ones, with values of the others that are not older.
    OnTrigger {
        /// The topic.
        topic: usize,
        /// How old the others' values may be.
        max_age: Duration,
    },
}

/// What happens to a task's samples that come faster than they are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WhenFull {
    /// They stay at the broker.
    Block,
    /// The oldest waiting ones are dropped, and counted.
    #[default]
    DropOldest,
}

impl FromStr for WhenFull {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "block" => Ok(Self::Block),
            "drop-oldest" => Ok(Self::DropOldest),
            _ => Err("it must be \"block\" or \"drop-oldest\""),
        }
    }
}

/// Reads all of them; `prefix` is the API's.
pub(super) fn read(root: &mut Section<'_>, prefix: Option<&str>) -> Option<Vec<DeclaredTask>> {
    let api = Topics::new(prefix.unwrap_or("moai"), &[]);
    let (mut names, mut results) = (BTreeSet::new(), BTreeSet::new());
    let tasks = root.sections("tasks", |section| {
        let task = task(section, &api)?;
        if !names.insert(task.id.clone()) {
            section.problem(format_args!("two tasks are called {}", task.id));
        }
        if let Some(result) = &task.result_topic
            && !results.insert(result.clone())
        {
            section.problem(format_args!("two tasks have the result topic {result}"));
        }
        Some(task)
    })?;
    if tasks.len() > MAX_DECLARED {
        root.problem(format_args!("there are more than {MAX_DECLARED} [[tasks]]"));
    }
    let read: BTreeSet<&TopicName> =
        tasks.iter().flat_map(|task| &task.topics).map(|topic| &topic.name).collect();
    if let Some(topic) = results.iter().find(|topic| read.contains(topic)) {
        root.problem(format_args!("a task reads {topic}, which is a result topic"));
    }
    Some(tasks)
}

fn task(section: &mut Section<'_>, api: &Topics) -> Option<DeclaredTask> {
    let id = section.required("name");
    let model = section.required("model");
    let ttl = section.optional("ttl", TtlClass::default());
    let scores = section.boolean("scores", false);
    let when_full = section.optional("when_full", WhenFull::default());
    let order = section.optional("order", Order::default());
    let closable = section.boolean("closable", false);
    let result_topic = section.maybe::<TopicName>("result_topic");
    let trigger = section.maybe::<TopicName>("trigger");
    let has_max_age = section.has("max_age_ms");
    let max_age = section.integer("max_age_ms", 1..=MAX_AGE_MS, Some(DEFAULT_AGE_MS));
    let topics = section.sections("topics", |section| topic(section, api));
    let (result_topic, trigger, topics) = (result_topic?, trigger?, topics?);
    if result_topic.as_ref().is_some_and(|topic| api.is_own(topic.as_str())) {
        section.problem("`tasks.result_topic` is below the API's own prefix; leave it out");
    }
    check_topics(section, &topics);
    let max_age = Duration::from_millis(max_age?);
    let join = match &trigger {
        None => {
            if has_max_age {
                section.problem("`tasks.max_age_ms` has a meaning only with `trigger`");
            }
            Join::WhenAllAreFresh
        }
        Some(trigger) => {
            let Some(topic) = topics.iter().position(|topic| topic.name == *trigger) else {
                section.problem("`tasks.trigger` is none of the task's topics");
                return None;
            };
            Join::OnTrigger { topic, max_age }
        }
    };
    Some(DeclaredTask {
        id: id?,
        model: model?,
        ttl: ttl?,
        scores: scores?,
        topics,
        join,
        result_topic,
        when_full: when_full?,
        order: order?,
        closable: closable?,
    })
}

/// The rules that span a task's topics.
fn check_topics(section: &Section<'_>, topics: &[TaskTopic]) {
    let mut names = BTreeSet::new();
    if let Some(twice) = topics.iter().find(|topic| !names.insert(&topic.name)) {
        section.problem(format_args!("the task reads {} twice", twice.name));
    }
    if topics.len() > 1
        && let Some(whole) = topics.iter().find(|topic| topic.channels.count().is_none())
    {
        section.problem(format_args!(
            "of several topics each gives a part: {} needs `pointers` or `channels`",
            whole.name
        ));
    }
    let channels: usize =
        topics.iter().filter_map(|topic| topic.channels.count()).map(NonZeroUsize::get).sum();
    if channels > MAX_CHANNELS {
        section.problem(format_args!("the topics give more than {MAX_CHANNELS} channels"));
    }
}

fn topic(section: &mut Section<'_>, api: &Topics) -> Option<TaskTopic> {
    let name = section.required::<TopicName>("topic");
    let format = section.maybe::<Format>("format");
    let pointers = section.list::<Pointer>("pointers");
    let has_count = section.has("channels");
    let count = section.integer("channels", 1..=MAX_CHANNELS as u64, Some(1));
    let (name, format, pointers, count) = (name?, format?, pointers?, count?);
    if api.is_own(name.as_str()) {
        section.problem(format_args!(
            "{name} is below the API's own prefix; a task without topics takes its inputs there"
        ));
    }
    if !pointers.is_empty() && matches!(format, Some(Format::F32 | Format::I16)) {
        section.problem("packed messages have no places for `pointers`; say `channels`");
    }
    let count = usize::try_from(count).ok().and_then(NonZeroUsize::new)?;
    let channels = match (pointers.is_empty(), has_count) {
        (false, true) => {
            section.problem("a topic has `pointers` or `channels`, not both");
            return None;
        }
        (false, false) => TopicChannels::Pointers(pointers),
        (true, true) => TopicChannels::Samples(count),
        (true, false) => TopicChannels::Whole,
    };
    Some(TaskTopic { name, format, channels })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn parse(text: &str) -> Result<Vec<DeclaredTask>, String> {
        moai_settings::read(Path::new("agent.toml"), text, |root| super::read(root, Some("moai")))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_name_and_a_model_are_enough() {
        let tasks = parse("[[tasks]]\nname = 'arm'\nmodel = 'grasp'\n").unwrap();
        let [task] = &tasks[..] else { panic!("one task") };
        assert_eq!((task.when_full, task.closable), (WhenFull::DropOldest, false));
        assert_eq!(task.order, Order::OldestFirst);
        assert_eq!((task.channels(), task.join), (None, Join::WhenAllAreFresh));
    }

    #[test]
    fn channels_come_from_several_topics_in_their_order() {
        let text = "[[tasks]]\nname = 'arm'\nmodel = 'grasp'\nttl = 'sensitive'\nwhen_full = 'block'\n\
                    trigger = 'ft/torque'\nmax_age_ms = 50\nresult_topic = 'arm/decision'\nclosable = true\n\
                    [[tasks.topics]]\ntopic = 'ft/force'\npointers = ['/x', '/y', '/z']\n\
                    [[tasks.topics]]\ntopic = 'ft/torque'\nformat = 'f32'\nchannels = 3\n";
        let tasks = parse(text).unwrap();
        assert_eq!(tasks[0].channels(), Some(6));
        let max_age = Duration::from_millis(50);
        assert_eq!(tasks[0].join, Join::OnTrigger { topic: 1, max_age });
        assert_eq!(tasks[0].topics[1].format, Some(Format::F32));
    }

    #[test]
    fn every_mistake_is_named_with_its_line() {
        for (text, line, words) in [
            ("model = 'm'", 1, "`tasks.name` is missing"),
            ("name = 'a b'\nmodel = 'm'", 2, "`tasks.name` is not usable"),
            ("name = 'a'\nmodel = 'm'\nttl = 'ever'", 4, "`tasks.ttl` is not usable"),
            ("name = 'a'\nmodel = 'm'\norder = 'none'", 4, "\"oldest-first\" or \"newest-first\""),
            ("name = 'a'\nmodel = 'm'\nwhen_full = 'panic'", 4, "\"block\" or \"drop-oldest\""),
            ("name = 'a'\nmodel = 'm'\nresult_topic = 'x/#'", 4, "no wildcards"),
            ("name = 'a'\nmodel = 'm'\nresult_topic = 'moai/x'", 1, "below the API's own prefix"),
            ("name = 'a'\nmodel = 'm'\ntrigger = 'x'", 1, "none of the task's topics"),
            ("name = 'a'\nmodel = 'm'\nmax_age_ms = 5", 1, "only with `trigger`"),
            ("name = 'a'\nmodel = 'm'\nretries = 5", 4, "known keys: "),
            (
                "name = 'a'\nmodel = 'm'\n[[tasks]]\nname = 'a'\nmodel = 'm'",
                4,
                "two tasks are called a",
            ),
        ] {
            let message = parse(&format!("[[tasks]]\n{text}\n")).unwrap_err();
            assert!(message.contains(&format!("agent.toml:{line}: ")), "{line}: {message}");
            assert!(message.contains(words), "{words} is not in {message}");
        }
    }

    #[test]
    fn so_is_every_mistake_about_topics() {
        for (text, line, words) in [
            ("topic = 'a/+'", 5, "no wildcards"),
            ("topic = 'moai/task/x/input'", 4, "below the API's own prefix"),
            ("topic = 'a'\nformat = 'xml'", 6, "`tasks.topics.format` is not usable"),
            ("topic = 'a'\npointers = ['x']", 6, "begins with /"),
            ("topic = 'a'\npointers = ['/x']\nchannels = 1", 4, "not both"),
            ("topic = 'a'\nchannels = 0", 6, "a whole number from 1 to 256"),
            ("topic = 'a'\nformat = 'i16'\npointers = ['/x']", 4, "say `channels`"),
            ("topic = 'a'\n[[tasks.topics]]\ntopic = 'b'\nchannels = 1", 1, "a needs `pointers`"),
            ("topic = 'a'\n[[tasks.topics]]\ntopic = 'a'", 1, "reads a twice"),
            (
                "topic = 'a'\nchannels = 200\n[[tasks.topics]]\ntopic = 'b'\nchannels = 200",
                1,
                "more than 256 channels",
            ),
        ] {
            let head = "[[tasks]]\nname = 'arm'\nmodel = 'm'\n[[tasks.topics]]\n";
            let message = parse(&format!("{head}{text}\n")).unwrap_err();
            assert!(message.contains(&format!("agent.toml:{line}: ")), "{line}: {message}");
            assert!(message.contains(words), "{words} is not in {message}");
        }
        let circle = "[[tasks]]\nname = 'a'\nmodel = 'm'\nresult_topic = 'x'\n\
                      [[tasks]]\nname = 'b'\nmodel = 'm'\n[[tasks.topics]]\ntopic = 'x'\n";
        assert!(parse(circle).unwrap_err().contains("which is a result topic"));
    }
}
