//! Onboard software that reads a sensor.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, PubAckReason, PublishProperties};
use rumqttc::v5::{AsyncClient, Event, EventLoop, MqttOptions};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use crate::onboard::{PREFIX, SLOW};
use crate::process::STEP;
use crate::tiny::{SAMPLES, sample};

/// How a message says its samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// JSON: `[v, …]` for one sample, else `{"samples": [[v, …], …]}`.
    Json,
    /// Packed 32-bit floating-point numbers.
    F32,
}

/// What is published.
#[derive(Debug, Clone)]
pub struct Stream {
    /// Into this task.
    pub task: String,
    /// Samples each second; none for as fast as it goes.
    pub rate: Option<u32>,
    /// Samples in a message.
    pub batch: u64,
    /// How they are said.
    pub encoding: Encoding,
    /// How many samples.
    pub samples: u64,
}

impl Stream {
    /// One kilohertz.
    #[must_use]
    pub fn kilohertz(task: &str, batch: u64, encoding: Encoding, windows: u64) -> Self {
        let task = task.to_owned();
        Self { task, rate: Some(1000), batch, encoding, samples: windows * SAMPLES }
    }

    /// Windows that its samples make if none is dropped.
    #[must_use]
    pub fn windows(&self) -> u64 {
        self.samples / SAMPLES
    }

    fn message(&self, first: u64, count: u64) -> Vec<u8> {
        let samples = (first..first + count).map(sample);
        match self.encoding {
            Encoding::F32 => {
                samples.flatten().flat_map(|value| f32::from(value).to_le_bytes()).collect()
            }
            Encoding::Json if count == 1 => json!(sample(first)).to_string().into_bytes(),
            Encoding::Json => {
                json!({ "samples": samples.collect::<Vec<_>>() }).to_string().into_bytes()
            }
        }
    }
}

/// A connection to the robot's own broker. Dropping it ends it.
#[derive(Debug)]
pub struct Publisher {
    client: AsyncClient,
    /// Messages that the broker has taken; none when it refused one or the connection broke.
    taken: watch::Receiver<Option<u64>>,
    driver: JoinHandle<()>,
}

impl Publisher {
    /// Connects.
    ///
    /// # Errors
    /// The broker is down.
    pub async fn connect(port: u16, name: &str) -> Result<Self> {
        let mut options = MqttOptions::new(format!("sensor-{name}"), "127.0.0.1", port);
        options.set_clean_start(true);
        options.set_keep_alive(STEP);
        let (client, mut events) = AsyncClient::new(options, 256);
        timeout(STEP, connected(&mut events)).await.context("no answer from the broker")??;
        let (sender, taken) = watch::channel(Some(0));
        let driver = tokio::spawn(async move {
            while drive(&mut events, &sender).await.is_ok() {}
            sender.send_replace(None);
        });
        Ok(Self { client, taken, driver })
    }

    /// Publishes all messages, each at its time, and waits until the broker has taken them; returns
    /// when the last sample of each window was handed to the connection.
    ///
    /// # Errors
    /// The connection breaks, or the broker refuses a message.
    pub async fn publish(mut self, stream: &Stream) -> Result<Vec<Instant>> {
        let topic = format!("{PREFIX}/task/{}/input", stream.task);
        let properties = PublishProperties {
            content_type: (stream.encoding == Encoding::F32)
                .then(|| "application/vnd.moai.f32".to_owned()),
            ..PublishProperties::default()
        };
        let (start, mut last_samples, mut messages) = (Instant::now(), Vec::new(), 0);
        let mut first = 0;
        while first < stream.samples {
            let count = stream.batch.min(stream.samples - first);
            if let Some(rate) = stream.rate {
                // The moment of the message's last sample.
                let micros = (first + count) * 1_000_000 / u64::from(rate);
                sleep_until(start + Duration::from_micros(micros)).await;
            }
            let (payload, properties) = (stream.message(first, count), properties.clone());
            let publish = self.client.publish_with_properties(
                topic.as_str(),
                QoS::AtLeastOnce,
                false,
                payload,
                properties,
            );
            timeout(SLOW, publish).await.context("the broker takes nothing more")??;
            messages += 1;
            first += count;
            let done = usize::try_from(first / SAMPLES)?;
            last_samples.resize(done, Instant::now());
        }
        let all = self.taken.wait_for(|taken| taken.is_none_or(|taken| taken >= messages));
        match *timeout(SLOW, all).await.context("the broker acknowledges no more")?? {
            Some(_) => Ok(last_samples),
            None => bail!("the broker refused a message, or the connection broke"),
        }
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

async fn connected(events: &mut EventLoop) -> Result<()> {
    loop {
        if let Event::Incoming(Packet::ConnAck(_)) = events.poll().await? {
            return Ok(());
        }
    }
}

async fn drive(events: &mut EventLoop, taken: &watch::Sender<Option<u64>>) -> Result<()> {
    if let Event::Incoming(Packet::PubAck(ack)) = events.poll().await? {
        match ack.reason {
            PubAckReason::Success | PubAckReason::NoMatchingSubscribers => {
                taken.send_modify(|taken| *taken = taken.map(|taken| taken + 1));
            }
            refusal => bail!("the broker refuses a message: {refusal:?}"),
        }
    }
    Ok(())
}
