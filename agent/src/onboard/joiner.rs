//! Makes samples from the messages of a declared task's topics.
//!
//! Invariants:
//! - a sample has the channels of all topics, in the order of the configuration;
//! - without a trigger, every value is used at most once; a topic that is faster than the others
//!   gives its latest;
//! - with a trigger, no value is older than the configuration allows;
//! - the message of one topic never mixes into another's channels, and a refused one changes nothing.

use std::time::Duration;

use ciborium::Value;
use tokio::time::Instant;

use super::format::{self, Format};
use super::refusal::{Code, Refusal};
use super::samples::Samples;
use crate::config::{DeclaredTask, Join, TaskTopic, TopicChannels};

/// The latest values of one topic.
struct Latest {
    values: Vec<f64>,
    at: Instant,
    is_fresh: bool,
}

/// What a message led to.
pub enum Joined {
    /// Samples.
    Samples(Samples),
    /// Nothing yet: other topics have to follow.
    Waits,
    /// Nothing, though the trigger came: a topic is silent or its values are too old.
    Incomplete,
}

/// The topics of one task.
pub struct Joiner {
    topics: Vec<TaskTopic>,
    join: Join,
    latest: Vec<Option<Latest>>,
}

impl Joiner {
    /// Nothing has arrived yet.
    #[must_use]
    pub fn new(task: &DeclaredTask) -> Self {
        let latest = task.topics.iter().map(|_| None).collect();
        Self { topics: task.topics.clone(), join: task.join, latest }
    }

    /// Takes a message of one of the topics; `None` if it is of another.
    ///
    /// # Errors
    /// The message is not what its topic gives.
    pub fn take(
        &mut self,
        topic: &str,
        content_type: Option<&str>,
        payload: &[u8],
        now: Instant,
    ) -> Option<Result<Joined, Refusal>> {
        let index = self.topics.iter().position(|known| known.name.as_str() == topic)?;
        let known = &self.topics[index];
        let read = known.format.map_or_else(|| Format::of(content_type), Ok);
        let read = read.and_then(|format| read_topic(&known.channels, format, payload));
        Some(read.and_then(|read| self.join(index, read, now)))
    }

    fn join(&mut self, index: usize, read: Read, now: Instant) -> Result<Joined, Refusal> {
        let values = match read {
            Read::Samples(samples) if self.topics.len() == 1 => {
                return Ok(Joined::Samples(samples));
            }
            Read::Samples(samples) => {
                let channels = self.topics[index].channels.count();
                let channels = channels.ok_or_else(|| refuse(&self.topics[index], "no part"))?;
                let mut rows = samples.rows(channels)?;
                let (Some(row), None) = (rows.next(), rows.next()) else {
                    let why = "of several topics each message gives one sample";
                    return Err(refuse(&self.topics[index], why));
                };
                row.to_vec()
            }
            Read::Values(values) => values,
        };
        self.latest[index] = Some(Latest { values, at: now, is_fresh: true });
        let ready = match self.join {
            Join::WhenAllAreFresh => self.all(|latest| latest.is_fresh),
            Join::OnTrigger { topic, .. } if topic != index => return Ok(Joined::Waits),
            Join::OnTrigger { max_age, .. } => {
                if !self.all(|latest| now.duration_since(latest.at) <= max_age) {
                    return Ok(Joined::Incomplete);
                }
                true
            }
        };
        if !ready {
            return Ok(Joined::Waits);
        }
        let mut sample = Vec::new();
        for latest in self.latest.iter_mut().flatten() {
            latest.is_fresh = false;
            sample.extend_from_slice(&latest.values);
        }
        Samples::one(sample)
            .map(Joined::Samples)
            .ok_or_else(|| refuse(&self.topics[index], "too many channels"))
    }

    fn all(&self, is_ready: impl Fn(&Latest) -> bool) -> bool {
        self.latest.iter().all(|latest| latest.as_ref().is_some_and(&is_ready))
    }

    /// The oldest values that a trigger may use.
    #[must_use]
    pub fn max_age(&self) -> Option<Duration> {
        match self.join {
            Join::WhenAllAreFresh => None,
            Join::OnTrigger { max_age, .. } => Some(max_age),
        }
    }
}

enum Read {
    Samples(Samples),
    Values(Vec<f64>),
}

fn read_topic(channels: &TopicChannels, format: Format, payload: &[u8]) -> Result<Read, Refusal> {
    let TopicChannels::Pointers(pointers) = channels else {
        return Samples::parse(format, payload).map(Read::Samples);
    };
    let malformed = |why: String| Refusal::new(Code::Malformed, why);
    let document = format::read::<Value>(format, payload)
        .ok_or_else(|| malformed("packed messages have no places for JSON pointers".to_owned()))?
        .map_err(|place| malformed(format!("not a document ({})", place.0)))?;
    let values = pointers.iter().map(|pointer| {
        pointer
            .number(&document)
            .ok_or_else(|| malformed(format!("at \"{pointer}\" the message has no finite number")))
    });
    values.collect::<Result<_, _>>().map(Read::Values)
}

fn refuse(topic: &TaskTopic, why: &str) -> Refusal {
    Refusal::new(Code::WrongLength, format!("{}: {why}", topic.name))
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;

    fn topic(name: &str, pointers: &[&str]) -> TaskTopic {
        let pointers = pointers.iter().map(|pointer| pointer.parse().unwrap()).collect();
        let channels = TopicChannels::Pointers(pointers);
        TaskTopic { name: name.parse().unwrap(), format: None, channels }
    }

    fn joiner(topics: Vec<TaskTopic>, join: Join) -> Joiner {
        let latest = topics.iter().map(|_| None).collect();
        Joiner { topics, join, latest }
    }

    fn values(taken: Result<Joined, Refusal>) -> Option<Vec<f64>> {
        let Ok(Joined::Samples(samples)) = taken else { return None };
        let count = NonZeroUsize::new(samples.value_count()).unwrap();
        samples.rows(count).unwrap().next().map(<[f64]>::to_vec)
    }

    fn take(joiner: &mut Joiner, topic: &str, payload: &str, now: Instant) -> Option<Vec<f64>> {
        values(joiner.take(topic, None, payload.as_bytes(), now).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_trigger_a_sample_needs_something_new_of_every_topic() {
        let topics = vec![topic("force", &["/x", "/y"]), topic("torque", &["/0"])];
        let mut joiner = joiner(topics, Join::WhenAllAreFresh);
        let now = Instant::now();
        assert_eq!(take(&mut joiner, "torque", "[9]", now), None);
        assert_eq!(take(&mut joiner, "torque", "[3]", now), None);
        assert_eq!(
            take(&mut joiner, "force", r#"{"y": 2, "x": 1}"#, now),
            Some(vec![1.0, 2.0, 3.0])
        );
        assert_eq!(take(&mut joiner, "force", r#"{"y": 5, "x": 4}"#, now), None);
        assert_eq!(take(&mut joiner, "torque", "[6]", now), Some(vec![4.0, 5.0, 6.0]));
        assert!(joiner.take("others", None, b"1", now).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_trigger_uses_what_is_not_too_old() {
        let max_age = Duration::from_millis(100);
        let topics = vec![topic("slow", &[""]), topic("fast", &[""])];
        let mut joiner = joiner(topics, Join::OnTrigger { topic: 1, max_age });
        let start = Instant::now();
        let taken = joiner.take("fast", None, b"1", start).unwrap();
        assert!(matches!(taken, Ok(Joined::Incomplete)));
        assert_eq!(take(&mut joiner, "slow", "7", start), None);
        assert_eq!(take(&mut joiner, "fast", "2", start), Some(vec![7.0, 2.0]));
        assert_eq!(take(&mut joiner, "fast", "3", start + max_age), Some(vec![7.0, 3.0]));
        let late = start + max_age + Duration::from_millis(1);
        let taken = joiner.take("fast", None, b"4", late).unwrap();
        assert!(matches!(taken, Ok(Joined::Incomplete)));
    }

    #[tokio::test(start_paused = true)]
    async fn one_topic_alone_may_bring_many_samples() {
        let whole = TaskTopic { channels: TopicChannels::Whole, ..topic("imu", &[]) };
        let mut joiner = joiner(vec![whole], Join::WhenAllAreFresh);
        let payload: Vec<u8> = [1_i16, 2, 3, 4].iter().flat_map(|v| v.to_le_bytes()).collect();
        let taken = joiner.take("imu", Some("application/vnd.moai.i16"), &payload, Instant::now());
        let Some(Ok(Joined::Samples(samples))) = taken else { panic!("no samples") };
        assert_eq!(samples.rows(NonZeroUsize::new(2).unwrap()).unwrap().count(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_fit_is_refused_and_changes_nothing() {
        let part = NonZeroUsize::new(1).unwrap();
        let packed = TaskTopic {
            format: Some(Format::I16),
            channels: TopicChannels::Samples(part),
            ..topic("packed", &[])
        };
        let mut joiner = joiner(vec![topic("force", &["/x"]), packed], Join::WhenAllAreFresh);
        let now = Instant::now();
        assert_eq!(take(&mut joiner, "force", r#"{"x": 1}"#, now), None);
        for (topic, payload, code) in [
            ("force", &b"{\"y\": 1}"[..], Code::Malformed),
            ("force", b"{\"x\": \"-3617\"}", Code::Malformed),
            ("force", b"{", Code::Malformed),
            ("packed", &[1, 0, 2, 0], Code::WrongLength),
            ("packed", &[1], Code::WrongLength),
        ] {
            let Some(Err(refusal)) = joiner.take(topic, None, payload, now) else {
                panic!("taken")
            };
            assert_eq!(refusal.code, code, "{topic}");
            assert!(!refusal.message.contains("3617"), "{}", refusal.message);
        }
        assert!(joiner.take("force", Some("text/xml"), b"1", now).unwrap().is_err());
        let taken = joiner.take("packed", None, &[2, 0], now).unwrap();
        assert_eq!(values(taken), Some(vec![1.0, 2.0]));
    }

    proptest::proptest! {
        #[test]
        fn no_payload_panics(payload: Vec<u8>, first: bool, content_type: Option<u8>) {
            let part = NonZeroUsize::new(2).unwrap();
            let samples = TaskTopic { channels: TopicChannels::Samples(part), ..topic("b", &[]) };
            let mut joiner = joiner(vec![topic("a", &["/x/0"]), samples], Join::WhenAllAreFresh);
            let types = ["application/json", "application/cbor", "application/vnd.moai.f32",
                "application/vnd.moai.i16"];
            let content_type = content_type.map(|n| types[usize::from(n) % types.len()]);
            let name = if first { "a" } else { "b" };
            let now = std::time::Instant::now().into();
            let _ = joiner.take(name, content_type, &payload, now);
        }
    }
}
