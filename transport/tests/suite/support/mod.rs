//! What the tests share: example values, a real broker with real certificates, links to it.

pub(crate) mod broker;
pub(crate) mod certificates;
pub(crate) mod pipe;
pub(crate) mod signer;
pub(crate) mod values;

use std::time::Duration;

use bytes::Bytes;
use moai_transport::link::{
    self, Endpoint, Link, LinkConfig, LinkError, LinkEvent, Message, Outgoing, Qos, Reconnect,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// No event takes so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A configuration that reconnects quickly.
pub(crate) fn config(name: &str, endpoint: Endpoint) -> LinkConfig {
    let reconnect =
        Reconnect { initial: Duration::from_millis(20), max: Duration::from_millis(200) };
    LinkConfig { reconnect, ..LinkConfig::new(name, endpoint, name) }
}

pub(crate) fn subscribing(config: LinkConfig, filters: &[&str]) -> LinkConfig {
    let subscriptions =
        filters.iter().map(|filter| ((*filter).to_owned(), Qos::AtLeastOnce)).collect();
    LinkConfig { subscriptions, ..config }
}

pub(crate) fn outgoing(topic: &str, payload: impl Into<Bytes>) -> Outgoing {
    Outgoing::new(topic, payload, Qos::AtLeastOnce)
}

/// A link under test, with its events.
pub(crate) struct Subject {
    pub(crate) link: Link,
    pub(crate) events: mpsc::Receiver<LinkEvent>,
    pub(crate) cancel: CancellationToken,
}

impl Subject {
    pub(crate) fn spawn(config: LinkConfig) -> Self {
        let cancel = CancellationToken::new();
        let (link, events) = link::spawn(config, cancel.clone());
        Self { link, events, cancel }
    }

    /// A link that is up.
    pub(crate) async fn up(config: LinkConfig) -> Self {
        let mut subject = Self::spawn(config);
        subject.expect_up().await;
        subject
    }

    pub(crate) async fn event(&mut self) -> Option<LinkEvent> {
        tokio::time::timeout(PATIENCE, self.events.recv()).await.expect("no event comes")
    }

    pub(crate) async fn expect_up(&mut self) {
        let event = self.event().await;
        assert!(matches!(event, Some(LinkEvent::Up)), "{event:?}");
    }

    pub(crate) async fn expect_down(&mut self) -> LinkError {
        match self.event().await {
            Some(LinkEvent::Down(error)) => error,
            event => panic!("{event:?}"),
        }
    }

    pub(crate) async fn expect_message(&mut self) -> Message {
        match self.event().await {
            Some(LinkEvent::Message(message)) => message,
            event => panic!("{event:?}"),
        }
    }

    /// Takes events until the link is up again.
    pub(crate) async fn wait_up(&mut self) {
        while !matches!(self.event().await.expect("the link ended"), LinkEvent::Up) {}
    }

    pub(crate) async fn close(self) {
        self.cancel.cancel();
        tokio::time::timeout(PATIENCE, self.link.closed()).await.expect("the link does not end");
    }
}
