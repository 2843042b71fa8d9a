//! The connection below a [`super::Client`]: made, kept, and made again.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, PubAckReason, Publish, SubscribeReasonCode};
use rumqttc::v5::{AsyncClient, Event, EventLoop, MqttOptions};
use rumqttc::{TlsConfiguration, Transport};
use tokio::sync::{oneshot, watch};

use super::{Address, Message, lock};
use crate::process::STEP;

/// What the connection has brought so far.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) messages: Vec<Message>,
    pub(super) connected: bool,
}

/// One client's connection, shared by the client and the task that drives it.
#[derive(Debug)]
pub(super) struct Connection {
    address: Address,
    seen: watch::Sender<Seen>,
    pub(super) live: Mutex<Live>,
}

/// What belongs to the present connection. Acknowledgements come in the order of requests, so
/// both queues are matched first in, first out.
#[derive(Debug, Default)]
pub(super) struct Live {
    pub(super) client: Option<AsyncClient>,
    pub(super) published: VecDeque<oneshot::Sender<PubAckReason>>,
    pub(super) subscribed: VecDeque<oneshot::Sender<Vec<SubscribeReasonCode>>>,
    pub(super) filters: Vec<String>,
}

impl Connection {
    pub(super) fn new(address: Address) -> (Arc<Self>, watch::Receiver<Seen>) {
        let (sender, seen) = watch::channel(Seen::default());
        (Arc::new(Self { address, seen: sender, live: Mutex::default() }), seen)
    }

    /// Makes the first connection, which must succeed, and returns what keeps it.
    pub(super) async fn start(self: Arc<Self>) -> Result<impl Future<Output = ()> + Send> {
        let port = self.address.port;
        let (client, mut events) = self.dial()?;
        tokio::time::timeout(STEP, accepted(&mut events))
            .await
            .map_err(|_| anyhow!("no answer from the broker within {STEP:?}"))
            .flatten()
            .with_context(|| format!("cannot connect to port {port}"))?;
        self.connected(client);
        Ok(self.run(events))
    }

    fn dial(&self) -> Result<(AsyncClient, EventLoop)> {
        const MAX_PACKET: u32 = 1 << 20;
        const CAPACITY: usize = 1024;
        let address = &self.address;
        let mut options = MqttOptions::new(&address.client_id, "127.0.0.1", address.port);
        options.set_clean_start(true);
        options.set_max_packet_size(Some(MAX_PACKET));
        options.set_keep_alive(STEP);
        if let Some(credentials) = &address.credentials {
            let tls = TlsConfiguration::Rustls(credentials.tls()?);
            options.set_transport(Transport::tls_with_config(tls));
        }
        Ok(AsyncClient::new(options, CAPACITY))
    }

    fn connected(&self, client: AsyncClient) {
        {
            let mut live = lock(&self.live);
            for filter in &live.filters.clone() {
                // The channel is as fresh as the connection and holds more than a test's filters.
                let _ = client.try_subscribe(filter, QoS::AtLeastOnce);
                live.subscribed.push_back(oneshot::channel().0);
            }
            live.client = Some(client);
        }
        self.seen.send_modify(|seen| seen.connected = true);
    }

    fn disconnected(&self) {
        self.seen.send_modify(|seen| seen.connected = false);
        let mut live = lock(&self.live);
        let filters = std::mem::take(&mut live.filters);
        *live = Live { filters, ..Live::default() };
    }

    async fn run(self: Arc<Self>, mut events: EventLoop) {
        loop {
            while let Ok(event) = events.poll().await {
                self.handle(event);
            }
            self.disconnected();
            events = self.reconnect().await;
        }
    }

    async fn reconnect(&self) -> EventLoop {
        const PAUSE: Duration = Duration::from_millis(20);
        loop {
            // Nothing announces that a broker is back, so it has to be tried.
            tokio::time::sleep(PAUSE).await;
            let Ok((client, mut events)) = self.dial() else { continue };
            if accepted(&mut events).await.is_ok() {
                self.connected(client);
                return events;
            }
        }
    }

    fn handle(&self, event: Event) {
        match event {
            Event::Incoming(Packet::Publish(publish)) => {
                let message = received(publish);
                self.seen.send_modify(|seen| seen.messages.push(message));
            }
            Event::Incoming(Packet::PubAck(ack)) => {
                if let Some(reply) = lock(&self.live).published.pop_front() {
                    // Whoever asked may have given up.
                    let _ = reply.send(ack.reason);
                }
            }
            Event::Incoming(Packet::SubAck(ack)) => {
                if let Some(reply) = lock(&self.live).subscribed.pop_front() {
                    let _ = reply.send(ack.return_codes);
                }
            }
            _ => {}
        }
    }
}

async fn accepted(events: &mut EventLoop) -> Result<()> {
    loop {
        if let Event::Incoming(Packet::ConnAck(_)) = events.poll().await? {
            return Ok(());
        }
    }
}

fn received(publish: Publish) -> Message {
    Message {
        topic: String::from_utf8_lossy(&publish.topic).into_owned(),
        payload: publish.payload.to_vec(),
        retained: publish.retain,
        properties: publish.properties.unwrap_or_default(),
    }
}
