//! What the tests share: example values, a real broker with real certificates, links to it.

pub mod broker;
pub mod certificates;
pub mod values;

use std::time::Duration;

use moai_transport::link::{
    self, Endpoint, Link, LinkConfig, LinkError, LinkEvent, Message, Outgoing, Qos, Reconnect,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// No event takes so long.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A configuration that reconnects quickly.
pub fn config(name: &str, endpoint: Endpoint) -> LinkConfig {
    let reconnect =
        Reconnect { initial: Duration::from_millis(20), max: Duration::from_millis(200) };
    LinkConfig { reconnect, ..LinkConfig::new(name, endpoint, name) }
}

pub fn subscribing(config: LinkConfig, filters: &[&str]) -> LinkConfig {
    let subscriptions =
        filters.iter().map(|filter| ((*filter).to_owned(), Qos::AtLeastOnce)).collect();
    LinkConfig { subscriptions, ..config }
}

pub fn outgoing(topic: &str, payload: impl Into<Vec<u8>>) -> Outgoing {
    Outgoing::new(topic, payload.into(), Qos::AtLeastOnce)
}

/// A link under test, with its events.
pub struct Subject {
    pub link: Link,
    pub events: mpsc::Receiver<LinkEvent>,
    pub cancel: CancellationToken,
}

impl Subject {
    pub fn spawn(config: LinkConfig) -> Self {
        let cancel = CancellationToken::new();
        let (link, events) = link::spawn(config, cancel.clone());
        Self { link, events, cancel }
    }

    /// A link that is up.
    pub async fn up(config: LinkConfig) -> Self {
        let mut subject = Self::spawn(config);
        subject.expect_up().await;
        subject
    }

    pub async fn event(&mut self) -> Option<LinkEvent> {
        tokio::time::timeout(PATIENCE, self.events.recv()).await.expect("no event comes")
    }

    pub async fn expect_up(&mut self) {
        let event = self.event().await;
        assert!(matches!(event, Some(LinkEvent::Up)), "{event:?}");
    }

    pub async fn expect_down(&mut self) -> LinkError {
        match self.event().await {
            Some(LinkEvent::Down(error)) => error,
            event => panic!("{event:?}"),
        }
    }

    pub async fn expect_message(&mut self) -> Message {
        match self.event().await {
            Some(LinkEvent::Message(message)) => message,
            event => panic!("{event:?}"),
        }
    }

    /// Takes events until the link is up again.
    pub async fn wait_up(&mut self) {
        while !matches!(self.event().await.expect("the link ended"), LinkEvent::Up) {}
    }

    pub async fn close(self) {
        self.cancel.cancel();
        tokio::time::timeout(PATIENCE, self.link.closed()).await.expect("the link does not end");
    }
}
