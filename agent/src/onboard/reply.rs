//! MQTT 5 response topic and correlation data (MQTT 5 section 4.10).
//!
//! Invariants:
//! - a reply is a copy: what it says is on the task's own topics too;
//! - it is kept in memory only: who asked before the agent restarted hears from the task's own topics.

use bytes::Bytes;
use moai_transport::link::Message;

use super::refusal::{Code, Refusal};
use super::topics::{TopicName, Topics};

/// Most correlation data that is repeated, in bytes.
const MAX_CORRELATION_LEN: usize = 1024;

/// Where the sender of a message wants the outcome too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplyTo {
    /// Its response topic.
    pub topic: TopicName,
    /// What it wants repeated.
    pub correlation: Option<Bytes>,
}

impl ReplyTo {
    /// What a message asks for; `None` if it asks for nothing.
    ///
    /// # Errors
    /// It asks for what cannot be: a topic with wildcards or of the agent's own, or too much to repeat.
    pub fn of(message: &Message, topics: &Topics) -> Result<Option<Self>, Refusal> {
        let refuse = |why: &str| {
            let message = format!("the message's response topic cannot be used: {why}");
            Err(Refusal::new(Code::BadResponseTopic, message))
        };
        let Some(topic) = &message.response_topic else { return Ok(None) };
        let topic: TopicName = match topic.parse() {
            Ok(topic) => topic,
            Err(why) => return refuse(why),
        };
        if topics.is_taken(&topic) {
            return refuse("the agent itself reads or writes it; choose one of your own");
        }
        let correlation = message.correlation_data.clone();
        if correlation.as_ref().is_some_and(|data| data.len() > MAX_CORRELATION_LEN) {
            return refuse("its correlation data has more than 1024 bytes");
        }
        Ok(Some(Self { topic, correlation }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(response_topic: Option<&str>, correlation_len: usize) -> Message {
        Message {
            topic: "moai/task/arm/input".to_owned(),
            payload: Bytes::new(),
            retained: false,
            content_type: None,
            response_topic: response_topic.map(str::to_owned),
            correlation_data: Some(vec![7; correlation_len].into()),
            receipt: None,
        }
    }

    #[test]
    fn a_response_topic_is_one_of_the_senders_own() {
        let topics = Topics::new("moai", &[]);
        assert_eq!(ReplyTo::of(&asked(None, 9999), &topics), Ok(None));
        let reply = ReplyTo::of(&asked(Some("replies/7"), 4), &topics).unwrap().unwrap();
        assert_eq!(reply.topic.as_str(), "replies/7");
        assert_eq!(reply.correlation.as_deref(), Some(&[7; 4][..]));
        for (topic, correlation_len) in
            [("a/#", 0), ("moai/task/arm/input", 0), ("", 0), ("a", MAX_CORRELATION_LEN + 1)]
        {
            let refusal = ReplyTo::of(&asked(Some(topic), correlation_len), &topics).unwrap_err();
            assert_eq!(refusal.code, Code::BadResponseTopic, "{topic}");
        }
    }
}
