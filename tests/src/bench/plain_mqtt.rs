//! The baseline of the upload: rumqttc by itself, from publisher to subscriber.
//!
//! Invariant: publisher and subscriber have the broker, the TLS, the quality of service and the
//! message size of the links they are compared with, and do nothing else with a message than
//! count its bytes.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use moai_transport::chunk::CHUNK_LEN;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::Packet;
use rumqttc::v5::{AsyncClient, Event, EventLoop, MqttOptions};
use rumqttc::{TlsConfiguration, Transport};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::pki::Credentials;
use crate::process::STEP;

/// A publisher and a subscriber on one topic.
pub struct Pair {
    publisher: AsyncClient,
    topic: String,
    received: watch::Receiver<usize>,
    tasks: [JoinHandle<()>; 2],
}

impl Pair {
    /// Connects both. `publisher` must be allowed to write to `topic`, `subscriber` to read it.
    ///
    /// # Errors
    /// The broker refuses.
    pub async fn connect(
        port: u16,
        publisher: &Credentials,
        subscriber: &Credentials,
        topic: &str,
    ) -> Result<Self> {
        let (reader, mut reading) = client("bench-subscriber", port, subscriber)?;
        reader.subscribe(topic, QoS::AtLeastOnce).await?;
        until(&mut reading, |packet| matches!(packet, Packet::SubAck(_))).await?;
        let (publisher, mut writing) = client("bench-publisher", port, publisher)?;
        until(&mut writing, |packet| matches!(packet, Packet::ConnAck(_))).await?;
        let (count, received) = watch::channel(0);
        let subscribing = tokio::spawn(async move {
            // Held so that its event loop goes on.
            let _reader = reader;
            while let Ok(event) = reading.poll().await {
                if let Event::Incoming(Packet::Publish(publish)) = event {
                    count.send_modify(|bytes| *bytes += publish.payload.len());
                }
            }
        });
        let publishing = tokio::spawn(async move { while writing.poll().await.is_ok() {} });
        let tasks = [subscribing, publishing];
        Ok(Self { publisher, topic: topic.to_owned(), received, tasks })
    }

    /// Publishes `key` in chunks and waits until the subscriber has them all.
    ///
    /// # Errors
    /// A connection breaks.
    pub async fn transfer(&mut self, key: &Bytes) -> Result<()> {
        let expected = *self.received.borrow() + key.len();
        let mut start = 0;
        while start < key.len() {
            let end = key.len().min(start + CHUNK_LEN);
            let chunk = key.slice(start..end);
            self.publisher.publish(&self.topic, QoS::AtLeastOnce, false, chunk).await?;
            start = end;
        }
        let all = self.received.wait_for(|bytes| *bytes >= expected);
        let received = *tokio::time::timeout(STEP, all).await.context("bytes are missing")??;
        ensure!(received == expected, "{received} bytes came instead of {expected}");
        Ok(())
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

fn client(id: &str, port: u16, credentials: &Credentials) -> Result<(AsyncClient, EventLoop)> {
    const MAX_PACKET: u32 = 1 << 20;
    let mut options = MqttOptions::new(id, "localhost", port);
    options
        .set_clean_start(true)
        .set_keep_alive(Duration::from_secs(30))
        .set_max_packet_size(Some(MAX_PACKET))
        .set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(credentials.tls()?)));
    let mut network = options.network_options();
    network.set_tcp_nodelay(true);
    options.set_network_options(network);
    Ok(AsyncClient::new(options, 16))
}

async fn until(events: &mut EventLoop, wanted: impl Fn(&Packet) -> bool) -> Result<()> {
    let seen = async {
        loop {
            if let Event::Incoming(packet) = events.poll().await?
                && wanted(&packet)
            {
                return anyhow::Ok(());
            }
        }
    };
    match tokio::time::timeout(STEP, seen).await {
        Ok(seen) => seen,
        Err(_) => bail!("no answer from the broker within {STEP:?}"),
    }
}
