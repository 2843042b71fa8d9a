//! A connection to an MQTT 5 broker that comes back by itself.
//!
//! Invariants:
//! - every connection is new: its own client, event loop and TCP stream; nothing of an earlier
//!   connection is resent, its outstanding publications fail with [`PublishError::Down`], and
//!   whoever asked for them decides whether to ask again;
//! - the broker keeps no session, unless [`LinkConfig::session_expiry`] asks for one: then what was
//!   published meanwhile, and what was not acknowledged, comes with the next connection;
//! - a publication with [`Qos::AtLeastOnce`] succeeds when the broker has acknowledged it, which
//!   says nothing about receivers;
//! - [`LinkEvent::Up`] comes when all subscriptions are granted, messages come only between `Up`
//!   and [`LinkEvent::Down`], and there is no next connection before `Down` is in the consumer's
//!   channel;
//! - the connection is served however slow the consumer of events is, and what waits for it is
//!   limited. Messages of at least once are acknowledged when the consumer's channel takes them, or
//!   when the consumer confirms them, so the broker holds back the rest; from a broker that does not, the link takes what
//!   [`LinkConfig::inbox_bytes`] allows and then ends the connection with [`LinkError::Overrun`]
//!   instead of losing single messages silently. Messages of at most once get a quarter of that
//!   room; what is beyond is dropped, and a warning is logged;
//! - what is published as bulk waits for what is not, and leaves at the pace of the link: a slow link
//!   is not filled with a backlog behind which everything else would wait, see [`MAX_WINDOW`];
//! - after cancellation nothing is published; the broker is told good-bye, so that it sends no
//!   last will;
//! - payloads are never logged.

mod backoff;
mod config;
mod connection;
mod error;
mod inbox;
mod pacer;
mod pair;
mod publications;
mod pump;
mod queue;
mod receipts;
mod task;

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

pub use backoff::Reconnect;
pub use config::{Endpoint, LinkConfig};
pub use error::{LinkError, PublishError};
pub use pacer::MAX_WINDOW;
pub use pair::{FarEnd, Publication, pair};
pub use receipts::Receipt;

use self::queue::Queue;

/// Events that wait for the consumer, beyond those the link itself holds.
const EVENT_QUEUE_LEN: usize = 16;

/// Quality of service (MQTT 5 section 4.3). Exactly once is not offered: frames are idempotent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Qos {
    /// Sent once, perhaps lost.
    AtMostOnce,
    /// Sent until acknowledged, perhaps doubled.
    AtLeastOnce,
}

/// When a message of at least once is acknowledged: from then on the broker may forget it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acknowledge {
    /// When the consumer's channel takes it.
    WhenTaken,
    /// When the consumer confirms its [`Receipt`]. What is not confirmed comes again with the next
    /// connection if the broker keeps a session, and what waits for the consumer when a connection
    /// ends is left to that.
    WhenConfirmed,
}

/// A message to publish.
#[derive(Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// Where to.
    pub topic: String,
    /// What.
    pub payload: Bytes,
    /// How sure.
    pub qos: Qos,
    /// Whether the broker keeps it for later subscribers.
    pub retain: bool,
    /// After how long the broker drops it instead of delivering it; whole seconds, rounded up.
    pub expiry: Option<Duration>,
    /// MIME type of the payload.
    pub content_type: Option<String>,
    /// What the request that this answers asked to have repeated.
    pub correlation_data: Option<Bytes>,
}

impl Outgoing {
    /// A message that is not retained and does not expire.
    #[must_use]
    pub fn new(topic: impl Into<String>, payload: impl Into<Bytes>, qos: Qos) -> Self {
        Self {
            topic: topic.into(),
            payload: payload.into(),
            qos,
            retain: false,
            expiry: None,
            content_type: None,
            correlation_data: None,
        }
    }
}

/// A message that arrived.
pub struct Message {
    /// Where it was published.
    pub topic: String,
    /// Its payload, at most [`LinkConfig::max_packet`] bytes; not trusted in any other way.
    pub payload: Bytes,
    /// Whether it was published before the subscription, and kept by the broker.
    pub retained: bool,
    /// MIME type of the payload, as the publisher says.
    pub content_type: Option<String>,
    /// Where the publisher wants an answer.
    pub response_topic: Option<String>,
    /// What the publisher wants repeated in the answer.
    pub correlation_data: Option<Bytes>,
    /// To be confirmed, on a link that acknowledges when the consumer confirms.
    pub receipt: Option<Receipt>,
}

/// Payloads may be sensor samples: `Debug` tells their length only.
macro_rules! debug_without_payload {
    ($name:ident) => {
        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($name))
                    .field("topic", &self.topic)
                    .field("payload_len", &self.payload.len())
                    .finish_non_exhaustive()
            }
        }
    };
}
debug_without_payload!(Outgoing);
debug_without_payload!(Message);

/// What happens on a link.
#[derive(Debug)]
pub enum LinkEvent {
    /// Connected, and all subscriptions are granted.
    Up,
    /// The connection has ended, or an attempt to connect has failed.
    Down(LinkError),
    /// A message arrived.
    Message(Message),
}

/// A handle to a link. The link lives until it is cancelled or nobody receives its events.
#[derive(Clone)]
pub struct Link {
    prompt: mpsc::Sender<Command>,
    bulk: mpsc::Sender<Command>,
}

/// A publication on its way to the connection, with who waits for it.
struct Command {
    outgoing: Outgoing,
    reply: publications::Reply,
}

impl Link {
    /// Publishes a message. Returns when the broker has acknowledged it, or for at most once when
    /// it was handed to the operating system. Publications of one caller keep their order.
    ///
    /// Dropping the future does not recall a message that is already under way.
    ///
    /// # Errors
    /// The link is down or went down before the acknowledgement; the broker does not take the
    /// message. [`PublishError::is_transient`] tells whether to try again.
    pub async fn publish(&self, outgoing: Outgoing) -> Result<(), PublishError> {
        hand_over(&self.prompt, outgoing).await
    }

    /// Publishes one message of many and large ones, after everything that is not bulk and at the
    /// pace of the link. What waits in the link has not been sent: dropping the future recalls it.
    ///
    /// # Errors
    /// As for [`publish`](Self::publish).
    pub async fn publish_bulk(&self, outgoing: Outgoing) -> Result<(), PublishError> {
        hand_over(&self.bulk, outgoing).await
    }

    /// Waits until the link has ended and its connection is closed.
    pub async fn closed(&self) {
        self.prompt.closed().await;
    }
}

async fn hand_over(queue: &mpsc::Sender<Command>, outgoing: Outgoing) -> Result<(), PublishError> {
    let (reply, outcome) = oneshot::channel();
    queue.send(Command { outgoing, reply }).await.map_err(|_| PublishError::Closed)?;
    // The link drops what it has not answered only when it ends.
    outcome.await.unwrap_or(Err(PublishError::Closed))
}

/// Starts a link. It connects, and reconnects, until `cancel` or until the receiver of its events
/// is dropped; both end it with an orderly good-bye.
///
/// Errors that a person has to set right are reported as fatal and tried again all the same,
/// slowly: on a robot far away the remedy is often applied at the broker. Only a configuration
/// that cannot be used at all ends the link at once.
///
/// # Panics
/// Outside of a tokio runtime.
#[must_use]
pub fn spawn(config: LinkConfig, cancel: CancellationToken) -> (Link, mpsc::Receiver<LinkEvent>) {
    let (queue, prompt, bulk) = Queue::new();
    let (events, event_receiver) = mpsc::channel(EVENT_QUEUE_LEN);
    tokio::spawn(task::run(config, cancel, queue, events));
    (Link { prompt, bulk }, event_receiver)
}
