//! An MQTT 5 client for tests: publishes with the broker's answer, keeps every message it gets.
//!
//! Deliberately not built on moai-transport, so that a mistake there is not mirrored here.
//!
//! Invariants:
//! - messages are kept in the order of arrival and never dropped;
//! - waiting on a filter consumes: a message is handed out once per filter, so waiting twice for
//!   "active" means two messages;
//! - after a broken connection a new one is made and subscribed again; what was in flight fails.

mod connection;

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rumqttc::v5::AsyncClient;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{PubAckReason, PublishProperties, SubscribeReasonCode};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use self::connection::{Connection, Live, Seen};
use crate::log::Log;
use crate::pki::Credentials;
use crate::process::STEP;

/// One message as it arrived.
#[derive(Debug, Clone)]
pub struct Message {
    /// The topic it was published to.
    pub topic: String,
    /// The payload.
    pub payload: Vec<u8>,
    /// Whether the broker had it in store before we subscribed.
    pub retained: bool,
    /// Expiry, content type, response topic, correlation data.
    pub properties: PublishProperties,
}

impl Message {
    /// The payload as JSON.
    ///
    /// # Errors
    /// It is not JSON.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_slice(&self.payload).with_context(|| format!("not JSON: {self}"))
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 200;
        match std::str::from_utf8(&self.payload) {
            Ok(text) if text.len() <= SHOWN => write!(f, "{} {text}", self.topic),
            _ => write!(f, "{} ({} bytes)", self.topic, self.payload.len()),
        }
    }
}

/// Where and as whom to connect.
#[derive(Debug, Clone)]
pub struct Address {
    /// A port on loopback.
    pub port: u16,
    /// The certificate, if the broker wants TLS.
    pub credentials: Option<Credentials>,
    /// The client id; a broker that takes it from the certificate ignores it.
    pub client_id: String,
}

/// A connected client. Dropping it disconnects.
#[derive(Debug)]
pub struct Client {
    connection: Arc<Connection>,
    seen: watch::Receiver<Seen>,
    cursors: Mutex<HashMap<String, usize>>,
    witnesses: Mutex<Vec<Log>>,
    _stop: DropGuard,
}

impl Client {
    /// Connects; succeeds once the broker has accepted.
    ///
    /// # Errors
    /// The broker is down or refuses us.
    pub async fn connect(address: Address) -> Result<Self> {
        let (connection, seen) = Connection::new(address);
        let stop = CancellationToken::new();
        let run = Arc::clone(&connection).start().await?;
        tokio::spawn(stop.clone().run_until_cancelled_owned(run));
        Ok(Self {
            connection,
            seen,
            cursors: Mutex::default(),
            witnesses: Mutex::default(),
            _stop: stop.drop_guard(),
        })
    }

    /// Shows the end of this log whenever a wait on this client fails.
    pub fn show_on_failure(&self, log: &Log) {
        let mut witnesses = lock(&self.witnesses);
        witnesses.retain(|known| known.name() != log.name());
        witnesses.push(log.clone());
    }

    /// Subscribes for delivery at least once, now and after every reconnect.
    ///
    /// # Errors
    /// The broker refuses, or the connection breaks.
    pub async fn subscribe(&self, filter: &str) -> Result<()> {
        let what = format!("the subscription to {filter}");
        let granted = self
            .request(&what, |live, client| {
                let (reply, granted) = oneshot::channel();
                client.try_subscribe(filter, QoS::AtLeastOnce)?;
                live.subscribed.push_back(reply);
                live.filters.push(filter.to_owned());
                Ok(granted)
            })
            .await?;
        match granted.first() {
            Some(SubscribeReasonCode::Success(_)) => Ok(()),
            other => bail!("the broker refuses {what}: {other:?}"),
        }
    }

    /// Publishes, not retained, and waits for the broker's acknowledgement.
    ///
    /// # Errors
    /// The broker refuses, or the connection breaks.
    pub async fn publish(&self, topic: &str, payload: impl Into<Vec<u8>>) -> Result<()> {
        match self.try_publish(topic, payload, PublishProperties::default(), false).await? {
            PubAckReason::Success | PubAckReason::NoMatchingSubscribers => Ok(()),
            refusal => bail!("the broker refuses a message to {topic}: {refusal:?}"),
        }
    }

    /// Publishes and returns what the broker says to it, be it a refusal.
    ///
    /// # Errors
    /// The connection breaks before the broker has answered.
    pub async fn try_publish(
        &self,
        topic: &str,
        payload: impl Into<Vec<u8>>,
        properties: PublishProperties,
        retain: bool,
    ) -> Result<PubAckReason> {
        let payload = payload.into();
        self.request(&format!("the acknowledgement of a message to {topic}"), |live, client| {
            let (reply, acknowledged) = oneshot::channel();
            client.try_publish_with_properties(
                topic,
                QoS::AtLeastOnce,
                retain,
                payload.clone(),
                properties.clone(),
            )?;
            live.published.push_back(reply);
            Ok(acknowledged)
        })
        .await
    }

    /// Waits for the next message on `filter` that `wanted` accepts; what it refuses is skipped.
    ///
    /// # Errors
    /// None came within `limit`. The error shows what came instead and the logs of the processes
    /// given to [`Client::show_on_failure`].
    pub async fn wait_for(
        &self,
        filter: &str,
        what: &str,
        limit: Duration,
        mut wanted: impl FnMut(&Message) -> bool,
    ) -> Result<Message> {
        let mut seen = self.seen.clone();
        let found = async {
            loop {
                if let Some(message) = self.take(&seen.borrow_and_update(), filter, &mut wanted) {
                    return Ok(message);
                }
                seen.changed().await.context("the client is stopped")?;
            }
        };
        match tokio::time::timeout(limit, found).await {
            Ok(message) => message,
            Err(_) => bail!("no {what} on {filter} within {limit:?}\n{}", self.circumstances()),
        }
    }

    /// The next message on `filter` that has arrived already.
    #[must_use]
    pub fn poll(&self, filter: &str) -> Option<Message> {
        self.take(&self.seen.borrow(), filter, &mut |_| true)
    }

    /// Skips everything that has arrived on `filter` so far.
    pub fn skip(&self, filter: &str) {
        let arrived = self.seen.borrow().messages.len();
        lock(&self.cursors).insert(filter.to_owned(), arrived);
    }

    /// Every message since the client connected, in the order of arrival.
    #[must_use]
    pub fn history(&self) -> Vec<Message> {
        self.seen.borrow().messages.clone()
    }

    fn take(
        &self,
        seen: &Seen,
        filter: &str,
        wanted: &mut impl FnMut(&Message) -> bool,
    ) -> Option<Message> {
        let mut cursors = lock(&self.cursors);
        let cursor = cursors.entry(filter.to_owned()).or_default();
        let mut fresh = seen.messages.iter().enumerate().skip(*cursor);
        let found = fresh.find(|(_, message)| matches(filter, &message.topic) && wanted(message));
        *cursor = found.map_or(seen.messages.len(), |(index, _)| index + 1);
        found.map(|(_, message)| message.clone())
    }

    /// Hands a request to the present connection, or to the next one if there is none, and waits
    /// for the answer.
    async fn request<T>(
        &self,
        what: &str,
        mut send: impl FnMut(&mut Live, &AsyncClient) -> Result<oneshot::Receiver<T>>,
    ) -> Result<T> {
        let mut seen = self.seen.clone();
        let answered = async {
            loop {
                seen.wait_for(|seen| seen.connected).await.context("the client is stopped")?;
                let answer = {
                    let mut live = lock(&self.connection.live);
                    live.client.clone().map(|client| send(&mut live, &client)).transpose()?
                };
                if let Some(answer) = answer {
                    return answer.await.context("the connection broke");
                }
            }
        };
        match tokio::time::timeout(STEP, answered).await {
            Ok(answer) => answer.with_context(|| format!("while waiting for {what}")),
            Err(_) => bail!("waited {STEP:?} for {what}\n{}", self.circumstances()),
        }
    }

    fn circumstances(&self) -> String {
        const SHOWN: usize = 10;
        let seen = self.seen.borrow();
        let skipped = seen.messages.len().saturating_sub(SHOWN);
        let mut text = format!("the last of {} messages", seen.messages.len());
        for message in seen.messages.iter().skip(skipped) {
            // Writing to a String cannot fail.
            let _ = write!(text, "\n    {message}");
        }
        for log in lock(&self.witnesses).iter() {
            text.push('\n');
            text.push_str(&log.tail());
        }
        text
    }
}

/// Whether a topic matches a filter (MQTT 5.0, 4.7).
#[must_use]
pub fn matches(filter: &str, topic: &str) -> bool {
    let mut levels = topic.split('/');
    for wanted in filter.split('/') {
        match (wanted, levels.next()) {
            ("#", _) => return true,
            ("+", Some(_)) => {}
            (wanted, Some(level)) if wanted == level => {}
            _ => return false,
        }
    }
    levels.next().is_none()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Broker;

    async fn client(broker: &Broker) -> Client {
        let client_id = "test".to_owned();
        let address = Address { port: broker.port(), credentials: None, client_id };
        Client::connect(address).await.unwrap()
    }

    #[tokio::test]
    async fn a_wait_consumes_and_a_failed_wait_shows_what_came_instead() {
        let scratch = tempfile::tempdir().unwrap();
        let broker = Broker::onboard(scratch.path(), "").await.unwrap();
        let client = client(&broker).await;
        client.show_on_failure(broker.process().unwrap().log());
        client.subscribe("t/+").await.unwrap();
        for payload in ["1", "2", "3"] {
            client.publish("t/a", payload).await.unwrap();
        }
        let two = client.wait_for("t/a", "two", STEP, |m| m.payload == b"2").await.unwrap();
        assert_eq!(two.json().unwrap(), 2);
        let three = client.wait_for("t/a", "rest", STEP, |_| true).await.unwrap();
        assert_eq!(three.payload, b"3");
        assert_eq!(client.poll("t/+").unwrap().payload, b"1", "each filter has its own place");
        let limit = Duration::from_millis(1);
        let error = client.wait_for("t/a", "four", limit, |_| true).await.unwrap_err().to_string();
        assert!(error.contains("no four on t/a"), "{error}");
        assert!(error.contains("t/a 3"), "{error}");
        assert!(error.contains("--- last lines of onboard-broker (running)"), "{error}");
    }

    #[test]
    fn filters_match_as_the_standard_says() {
        for (filter, topic) in [("a/#", "a"), ("a/#", "a/b/c"), ("a/+/c", "a/b/c"), ("#", "x/y")] {
            assert!(matches(filter, topic), "{filter} {topic}");
        }
        for (filter, topic) in [("a/+", "a"), ("a/+", "a/b/c"), ("a", "a/b"), ("a/b", "a")] {
            assert!(!matches(filter, topic), "{filter} {topic}");
        }
    }
}
