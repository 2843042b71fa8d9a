//! One connection, from TCP to its end.
//!
//! Invariants:
//! - `Up` is told once, after every subscription was granted with at least the quality asked for;
//! - a sign of life, or the lack of it, is judged here and not left to the client library, whose
//!   poll can wait for ever on a peer that does not read;
//! - messages of at least once are acknowledged in the order of their arrival (MQTT 5 section 4.6),
//!   when the consumer's channel has taken them or the consumer has confirmed them.

use std::collections::VecDeque;
use std::time::Duration;

use rumqttc::Outgoing as Sent;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    ConnAck, Filter, Publish, PublishProperties, SubAck, SubscribeReasonCode,
};
use rumqttc::v5::{AsyncClient, Event, Incoming};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::config::{MAX_OUTSTANDING, check, expiry_seconds, mqtt_qos};
use super::inbox::{Arrived, Inbox, Taken};
use super::pacer::Pacer;
use super::publications::{Publications, answer};
use super::pump::Pump;
use super::queue::{Next, Queue};
use super::receipts::Receipts;
use super::{
    Acknowledge, Command, LinkConfig, LinkError, LinkEvent, Message, Outgoing, PublishError, Qos,
};

/// How long the broker may take to close the connection after our good-bye.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);
/// Largest packet of MQTT (MQTT 5 section 1.5.5), for brokers that name no limit.
const MAX_MQTT_PACKET: usize = 268_435_455;

/// Acknowledgements that the client library may have waiting.
const MAX_ACKNOWLEDGEMENTS: usize = 16;
/// A publication, a subscription and a good-bye.
const OTHER_REQUESTS: usize = 3;

/// How a connection ended.
pub(super) enum End {
    /// We were told to stop and have said good-bye.
    Stopped,
    /// It failed; it had been up for so long.
    Lost {
        error: LinkError,
        uptime: Duration,
        /// Messages that arrived and were not taken yet.
        inbox: Inbox,
    },
}

struct Connection<'a> {
    config: &'a LinkConfig,
    client: AsyncClient,
    inbox: Inbox,
    receipts: Receipts,
    /// Packet ids the consumer has taken and the client library was not yet asked to acknowledge.
    to_acknowledge: VecDeque<u16>,
    /// Acknowledgements it was asked for and has not sent.
    acknowledgements: usize,
    publications: Publications,
    pacer: Pacer,
    /// Largest packet the broker takes.
    max_packet: usize,
    up_since: Option<Instant>,
    /// Whether the consumer was told that we are up.
    is_announced: bool,
    last_sign: Instant,
    connect_deadline: Instant,
}

/// Connects, subscribes and serves until the connection fails or `cancel`.
pub(super) async fn run(
    config: &LinkConfig,
    cancel: &CancellationToken,
    queue: &mut Queue,
    events: &mpsc::Sender<LinkEvent>,
) -> End {
    let options = match config.options() {
        Ok(options) => options,
        Err(error) => {
            return End::Lost { error, uptime: Duration::ZERO, inbox: Inbox::new(0) };
        }
    };
    let (client, event_loop) = AsyncClient::new(options, MAX_ACKNOWLEDGEMENTS + OTHER_REQUESTS);
    let mut pump = Pump::start(event_loop);
    let mut connection = Connection::new(config, client);
    let end = connection.serve(&mut pump, cancel, queue, events).await;
    match end {
        Ok(()) => {
            connection.say_goodbye(&mut pump).await;
            pump.stop().await;
            End::Stopped
        }
        Err(error) => {
            pump.stop().await;
            let uptime = connection.up_since.map(|since| since.elapsed()).unwrap_or_default();
            connection.publications.fail_all();
            // Before `Up` nobody was told that messages come; unconfirmed ones come again.
            let is_told = connection.is_announced && config.acknowledge == Acknowledge::WhenTaken;
            let inbox = if is_told { connection.inbox } else { Inbox::new(0) };
            End::Lost { error, uptime, inbox }
        }
    }
}

impl<'a> Connection<'a> {
    fn new(config: &'a LinkConfig, client: AsyncClient) -> Self {
        Self {
            config,
            client,
            inbox: Inbox::new(config.inbox_bytes),
            receipts: Receipts::new(),
            to_acknowledge: VecDeque::new(),
            acknowledgements: 0,
            publications: Publications::new(1),
            pacer: Pacer::new(config.keep_alive),
            max_packet: MAX_MQTT_PACKET,
            up_since: None,
            is_announced: false,
            last_sign: Instant::now(),
            connect_deadline: Instant::now() + config.connect_timeout,
        }
    }

    /// Serves the connection; returns without an error when it is to be closed.
    async fn serve(
        &mut self,
        pump: &mut Pump,
        cancel: &CancellationToken,
        queue: &mut Queue,
        events: &mpsc::Sender<LinkEvent>,
    ) -> Result<(), LinkError> {
        let mut has_publishers = true;
        loop {
            let takes_any = self.publications.has_room();
            let takes_bulk = self.pacer.has_room();
            let (has_news, deadline) = (self.has_news(), self.deadline());
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                event = pump.next() => self.on_event(event?)?,
                permit = events.reserve(), if has_news => {
                    match permit {
                        Ok(permit) => self.deliver(permit),
                        Err(_) => return Ok(()),
                    }
                }
                packet_id = self.receipts.confirmed() => {
                    self.to_acknowledge.extend(self.receipts.settle(packet_id));
                    self.acknowledge();
                }
                () = events.closed() => return Ok(()),
                next = queue.next(takes_bulk), if has_publishers && takes_any => match next {
                    Some(Next::Prompt(command)) => self.publish(command, false),
                    Some(Next::Bulk(command)) => self.publish(command, true),
                    None => has_publishers = false,
                },
                () = sleep_until(deadline) => return Err(self.stall()),
            }
        }
    }

    /// Whether there is something for the consumer.
    fn has_news(&self) -> bool {
        self.up_since.is_some() && (!self.is_announced || !self.inbox.is_empty())
    }

    /// When the connection is given up if nothing happens before.
    fn deadline(&self) -> Instant {
        if self.up_since.is_none() {
            return self.connect_deadline;
        }
        let silent = self.last_sign + self.config.keep_alive * 3 / 2;
        match self.publications.oldest() {
            Some(sent_at) => silent.min(sent_at + self.config.keep_alive * 2),
            None => silent,
        }
    }

    fn stall(&self) -> LinkError {
        if self.up_since.is_none() {
            LinkError::Unreachable("it did not accept us in time".to_owned())
        } else if self.last_sign.elapsed() >= self.config.keep_alive * 3 / 2 {
            LinkError::Stalled("no sign of life for 1.5 times the keep-alive")
        } else {
            LinkError::Stalled("a publication was not acknowledged for twice the keep-alive")
        }
    }

    fn on_event(&mut self, event: Event) -> Result<(), LinkError> {
        if matches!(event, Event::Incoming(_)) {
            self.last_sign = Instant::now();
        }
        match event {
            Event::Incoming(Incoming::ConnAck(connack)) => self.on_connack(&connack),
            Event::Incoming(Incoming::SubAck(suback)) => self.on_suback(&suback),
            Event::Incoming(Incoming::Publish(publish)) => self.on_publish(publish),
            Event::Incoming(Incoming::PubAck(puback)) => {
                if let Some(departure) = self.publications.on_puback(&puback) {
                    self.pacer.on_acknowledged(departure, Instant::now());
                }
                Ok(())
            }
            Event::Outgoing(Sent::Publish(packet_id)) => {
                self.publications.on_sent(packet_id, Instant::now());
                Ok(())
            }
            Event::Outgoing(Sent::PubAck(_)) => {
                self.acknowledgements = self.acknowledgements.saturating_sub(1);
                self.acknowledge();
                Ok(())
            }
            Event::Outgoing(Sent::AwaitAck(_)) => {
                Err(LinkError::Protocol("two publications got one packet id".to_owned()))
            }
            _ => Ok(()),
        }
    }

    fn on_connack(&mut self, connack: &ConnAck) -> Result<(), LinkError> {
        let properties = connack.properties.as_ref();
        let receive_max = properties.and_then(|p| p.receive_max).unwrap_or(u16::MAX);
        if receive_max == 0 {
            return Err(LinkError::Protocol("it receives nothing at all".to_owned()));
        }
        let packet_ids = receive_max.min(MAX_OUTSTANDING);
        self.publications = Publications::new(packet_ids);
        if let Some(max) = properties.and_then(|p| p.max_packet_size) {
            self.max_packet = usize::try_from(max).unwrap_or(usize::MAX).min(MAX_MQTT_PACKET);
        }
        if self.config.subscriptions.is_empty() {
            self.go_up();
            return Ok(());
        }
        let filters = self
            .config
            .subscriptions
            .iter()
            .map(|(filter, qos)| Filter::new(filter.as_str(), mqtt_qos(*qos)));
        self.client
            .try_subscribe_many(filters)
            .map_err(|error| LinkError::Broken(error.to_string()))
    }

    fn on_suback(&mut self, suback: &SubAck) -> Result<(), LinkError> {
        let is_awaited =
            self.up_since.is_none() && suback.return_codes.len() == self.config.subscriptions.len();
        if !is_awaited {
            return Err(LinkError::Protocol("SUBACK does not match our SUBSCRIBE".to_owned()));
        }
        for ((filter, qos), code) in self.config.subscriptions.iter().zip(&suback.return_codes) {
            let granted = match code {
                SubscribeReasonCode::Success(granted) => *granted >= mqtt_qos(*qos),
                _ => false,
            };
            if !granted {
                let reason = format!("{code:?}");
                return Err(LinkError::Subscription { filter: filter.clone(), reason });
            }
        }
        self.go_up();
        Ok(())
    }

    fn go_up(&mut self) {
        self.up_since = Some(Instant::now());
        self.last_sign = Instant::now();
        tracing::debug!(
            link = %self.config.name,
            max_packet = self.max_packet,
            "link is up"
        );
    }

    fn on_publish(&mut self, publish: Publish) -> Result<(), LinkError> {
        let packet_id = match publish.qos {
            QoS::AtMostOnce => None,
            QoS::AtLeastOnce => Some(publish.pkid),
            QoS::ExactlyOnce => {
                let problem = "it sends exactly once, for which nobody asked";
                return Err(LinkError::Protocol(problem.to_owned()));
            }
        };
        let Ok(topic) = String::from_utf8(publish.topic.to_vec()) else {
            return Err(LinkError::Protocol("a topic is not UTF-8".to_owned()));
        };
        let properties = publish.properties.unwrap_or_default();
        let message = Message {
            topic,
            payload: publish.payload,
            retained: publish.retain,
            content_type: properties.content_type,
            response_topic: properties.response_topic,
            correlation_data: properties.correlation_data,
            receipt: None,
        };
        let was_dropping = self.inbox.is_dropping();
        match self.inbox.push(Arrived { message, packet_id }) {
            Taken::Waits => {}
            Taken::Overrun => return Err(LinkError::Overrun),
            Taken::Dropped if was_dropping => {}
            Taken::Dropped => tracing::warn!(
                link = %self.config.name,
                "messages of at most once arrive faster than they are taken; some are dropped"
            ),
        }
        Ok(())
    }

    /// Gives the consumer the oldest news. For a message, tells the broker that there is room for another.
    fn deliver(&mut self, permit: mpsc::Permit<'_, LinkEvent>) {
        if !self.is_announced {
            self.is_announced = true;
            permit.send(LinkEvent::Up);
            return;
        }
        let Some(Arrived { mut message, packet_id }) = self.inbox.pop() else { return };
        match (packet_id, self.config.acknowledge) {
            (Some(packet_id), Acknowledge::WhenTaken) => self.to_acknowledge.push_back(packet_id),
            (Some(packet_id), Acknowledge::WhenConfirmed) => {
                message.receipt = Some(self.receipts.issue(packet_id));
            }
            (None, _) => {}
        }
        permit.send(LinkEvent::Message(message));
        self.acknowledge();
        if self.inbox.is_empty() {
            let dropped = self.inbox.take_dropped();
            if dropped > 0 {
                tracing::warn!(link = %self.config.name, dropped, "messages were dropped");
            }
        }
    }

    /// Hands acknowledgements to the client library, as many as it has room for.
    fn acknowledge(&mut self) {
        while self.acknowledgements < MAX_ACKNOWLEDGEMENTS
            && let Some(pkid) = self.to_acknowledge.pop_front()
        {
            let publish = Publish { pkid, qos: QoS::AtLeastOnce, ..Publish::default() };
            // It has room, or has ended and with it the connection.
            let _ = self.client.try_ack(&publish);
            self.acknowledgements += 1;
        }
    }

    /// Hands a publication to the client library.
    fn publish(&mut self, command: Command, is_bulk: bool) {
        let Command { outgoing, reply } = command;
        // Whoever asked may have given up while it waited.
        if reply.is_closed() {
            return;
        }
        // What is sent once is not acknowledged, and cannot be paced.
        let is_bulk = is_bulk && outgoing.qos == Qos::AtLeastOnce;
        match self.try_publish(outgoing) {
            Ok(len) => {
                let departure = self.pacer.on_departure(len, is_bulk, Instant::now());
                self.publications.on_handed_over(reply, departure);
            }
            Err(error) => answer(reply, Err(error)),
        }
    }

    /// Returns the length of the packet.
    fn try_publish(&mut self, outgoing: Outgoing) -> Result<usize, PublishError> {
        if self.up_since.is_none() {
            return Err(PublishError::Down);
        }
        check(&outgoing).map_err(PublishError::Invalid)?;
        let properties = PublishProperties {
            message_expiry_interval: expiry_seconds(&outgoing),
            content_type: outgoing.content_type,
            correlation_data: outgoing.correlation_data,
            ..PublishProperties::default()
        };
        let qos = mqtt_qos(outgoing.qos);
        let probe = Publish {
            pkid: u16::from(outgoing.qos == Qos::AtLeastOnce),
            ..Publish::new(
                outgoing.topic.as_str(),
                qos,
                outgoing.payload.clone(),
                Some(properties.clone()),
            )
        };
        let len = probe.size();
        if len > self.max_packet {
            return Err(PublishError::TooLarge { len, max: self.max_packet });
        }
        self.client
            .try_publish_with_properties(
                outgoing.topic,
                qos,
                outgoing.retain,
                outgoing.payload,
                properties,
            )
            .map(|()| len)
            .map_err(|_| PublishError::Down)
    }

    /// Disconnects and waits until the broker has closed the connection: closing it ourselves with
    /// packets unread would reset it, and the broker might not see the good-bye.
    async fn say_goodbye(&mut self, pump: &mut Pump) {
        while let Some(packet_id) = self.receipts.confirmed_already() {
            self.to_acknowledge.extend(self.receipts.settle(packet_id));
        }
        self.acknowledge();
        if self.up_since.is_none() || self.client.try_disconnect().is_err() {
            return;
        }
        let closed = async { while pump.next().await.is_ok() {} };
        if timeout(GOODBYE_TIMEOUT, closed).await.is_err() {
            tracing::debug!(link = %self.config.name, "the broker did not close the connection");
        }
    }
}
