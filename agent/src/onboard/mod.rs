//! The onboard API: what programs on the robot say to the agent and hear from it on the robot's own
//! broker. docs/onboard.md is its guide.
//!
//! Invariants:
//! - every payload has a size cap and is refused whole or taken whole;
//! - a refusal is one message on the task's `error` topic that says what to do;
//! - nothing here is logged: payloads are sensor samples.

mod format;
mod joiner;
mod outputs;
mod pointer;
mod publisher;
mod queue;
mod refusal;
mod reply;
mod samples;
mod topics;

use moai_transport::ids::{ModelId, TaskId};
use moai_transport::link::{Message, Receipt};
use serde::Deserialize;
use tokio::time::Instant;

pub use format::Format;
pub use joiner::{Joined, Joiner};
pub use outputs::{Answer, Bytes, TaskState, Timing, micros};
pub use pointer::Pointer;
pub use publisher::{Onboard, ReleaseStep};
pub use queue::{MAX_WAITING, Next, Receiver, Sender, Wanted, queue};
pub use refusal::{Code, Refusal};
pub use reply::ReplyTo;
pub use samples::{MAX_CHANNELS, Samples};
pub use topics::{Declared, TopicName, Topics, Verb};

use crate::ttl::TtlClass;

/// The largest payload of an onboard message.
pub const MAX_PAYLOAD_LEN: usize = 256 * 1024;

/// What onboard software asks for.
pub enum Command {
    /// Open a task.
    Open(OpenRequest),
    /// Take samples, oldest first.
    Input(Samples),
    /// End the session and go on with a new one.
    Rotate,
    /// Close the task.
    Close,
}

/// The payload of `open`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenRequest {
    /// The model to ask.
    pub model: ModelId,
    /// Lifetime class of the task's sessions.
    #[serde(default)]
    pub ttl: TtlClass,
    /// Whether answers have the scores beside the label.
    #[serde(default)]
    pub scores: bool,
}

/// A message to a task.
pub struct Request {
    /// What it asks for, or why that is refused.
    pub command: Result<Command, Refusal>,
    /// Where its sender wants the outcome too.
    pub reply: Option<ReplyTo>,
    /// To be confirmed when the task has taken it.
    pub receipt: Option<Receipt>,
    /// When it arrived.
    pub arrived: Instant,
}

impl Request {
    /// A request that nobody wants a reply to.
    #[must_use]
    pub fn new(command: Result<Command, Refusal>) -> Self {
        Self { command, reply: None, receipt: None, arrived: Instant::now() }
    }

    /// Reads a message of the API; `None` if its topic is none of the API's.
    #[must_use]
    pub fn of(mut message: Message, topics: &Topics) -> Option<(TaskId, Verb, Self)> {
        let (task, verb) = topics.parse(&message.topic)?;
        let receipt = message.receipt.take();
        let (reply, command) = match ReplyTo::of(&message, topics) {
            Ok(reply) => (reply, parse(verb, message.content_type.as_deref(), &message.payload)),
            Err(refusal) => (None, Err(refusal)),
        };
        Some((task, verb, Self { command, reply, receipt, arrived: Instant::now() }))
    }
}

/// Whether a payload is within its cap.
///
/// # Errors
/// It is not.
pub fn check_len(payload: &[u8]) -> Result<(), Refusal> {
    if payload.len() <= MAX_PAYLOAD_LEN {
        return Ok(());
    }
    let message = format!(
        "the message has {} bytes, at most {MAX_PAYLOAD_LEN} are taken; send fewer samples at a time",
        payload.len()
    );
    Err(Refusal::new(Code::TooLarge, message))
}

fn parse(verb: Verb, content_type: Option<&str>, payload: &[u8]) -> Result<Command, Refusal> {
    check_len(payload)?;
    match verb {
        Verb::Rotate => Ok(Command::Rotate),
        Verb::Close => Ok(Command::Close),
        Verb::Input => Samples::parse(Format::of(content_type)?, payload).map(Command::Input),
        Verb::Open => parse_open(Format::of(content_type)?, payload).map(Command::Open),
    }
}

fn parse_open(format: Format, payload: &[u8]) -> Result<OpenRequest, Refusal> {
    let why = match format::read(format, payload) {
        Some(Ok(request)) => return Ok(request),
        Some(Err(place)) => place.0,
        None => "it is packed numbers".to_owned(),
    };
    let message = format!(
        "`open` takes {{\"model\": \"…\", \"ttl\": \"general|sensitive|long\", \"scores\": false|true}} \
         in JSON or CBOR, this is something else ({why})"
    );
    Err(Refusal::new(Code::Malformed, message))
}

#[cfg(test)]
mod tests {
    use ciborium::cbor;

    use super::*;

    fn message(
        topic: &str,
        content_type: Option<&str>,
        payload: impl Into<bytes::Bytes>,
    ) -> Message {
        Message {
            topic: topic.to_owned(),
            payload: payload.into(),
            retained: false,
            content_type: content_type.map(str::to_owned),
            response_topic: None,
            correlation_data: None,
            receipt: None,
        }
    }

    fn request(topic: &str, content_type: Option<&str>, payload: &[u8]) -> Result<Command, Code> {
        let topics = Topics::new("moai", &[]);
        let message = message(topic, content_type, payload.to_vec());
        let (task, _, request) = Request::of(message, &topics).expect("a topic of the API");
        assert_eq!(task.to_string(), "grasp");
        request.command.map_err(|refusal| refusal.code)
    }

    #[test]
    fn an_open_is_json_or_cbor() {
        let mut binary = Vec::new();
        let map = cbor!({"model" => "force", "ttl" => "long"}).unwrap();
        ciborium::into_writer(&map, &mut binary).unwrap();
        for (content_type, payload, ttl) in [
            (None, &br#"{"model": "force"}"#[..], TtlClass::General),
            (Some("application/cbor"), &binary, TtlClass::Long),
        ] {
            let Ok(Command::Open(open)) = request("moai/task/grasp/open", content_type, payload)
            else {
                panic!("no open")
            };
            assert_eq!((open.model.as_ref(), open.ttl), ("force", ttl));
        }
        for (content_type, payload) in [
            (None, &br#"{"model": "force", "ttl": "ever"}"#[..]),
            (None, br#"{"model": "force", "more": 1}"#),
            (Some("application/vnd.moai.f32"), b"0000"),
        ] {
            let refused = request("moai/task/grasp/open", content_type, payload).err();
            assert_eq!(refused, Some(Code::Malformed));
        }
    }

    #[test]
    fn what_is_too_large_or_of_an_unknown_type_is_not_parsed() {
        let huge = vec![b' '; MAX_PAYLOAD_LEN + 1];
        let refused =
            |content_type, payload| request("moai/task/grasp/input", content_type, payload).err();
        assert_eq!(refused(None, &huge), Some(Code::TooLarge));
        assert_eq!(refused(Some("text/csv"), b"1,2"), Some(Code::UnknownFormat));
        assert_eq!(refused(Some("application/cbor"), b"\x18\x45"), None);
    }

    #[test]
    fn whoever_names_an_impossible_response_topic_is_refused_before_anything_is_done() {
        let topics = Topics::new("moai", &[]);
        let mut close = message("moai/task/grasp/close", None, "");
        close.response_topic = Some("moai/task/grasp/open".to_owned());
        let (_, _, request) = Request::of(close, &topics).unwrap();
        assert_eq!(request.command.err().unwrap().code, Code::BadResponseTopic);
    }

    proptest::proptest! {
        #[test]
        fn no_message_panics(payload: Vec<u8>, verb in 0..4_usize, format in 0..5_usize) {
            let verb = ["open", "input", "rotate", "close"][verb];
            let types = ["application/json", "application/cbor", "application/vnd.moai.f32",
                "application/vnd.moai.i16", "text/plain"];
            let _ = request(&format!("moai/task/grasp/{verb}"), Some(types[format]), &payload);
        }
    }
}
