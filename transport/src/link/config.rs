//! What a link needs to know, and the checks it must pass.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use rumqttc::v5::MqttOptions;
use rumqttc::v5::mqttbytes::v5::{ConnectProperties, LastWill, LastWillProperties};
use rumqttc::v5::mqttbytes::{QoS, valid_filter, valid_topic};
use rumqttc::{TlsConfiguration, Transport};

use super::{Acknowledge, LinkError, Outgoing, Qos, Reconnect};

/// The client library counts pings in whole seconds and takes no shorter interval.
const MIN_KEEP_ALIVE: Duration = Duration::from_secs(5);
const MAX_KEEP_ALIVE: Duration = Duration::from_secs(u16::MAX as u64);
/// Most publications that wait for an acknowledgement, if the broker allows as many.
pub(super) const MAX_OUTSTANDING: u16 = 64;
/// Longest string and binary data of an MQTT packet (MQTT 5 section 1.5).
const MAX_STRING_LEN: usize = u16::MAX as usize;

/// Where a broker is.
#[derive(Clone)]
pub struct Endpoint {
    /// Host name or IP address; with TLS, as in the broker's certificate.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// TLS credentials. Without, the connection is plain TCP, which is for loopback only.
    pub tls: Option<Arc<rustls::ClientConfig>>,
}

/// What a link needs to know.
#[derive(Clone)]
pub struct LinkConfig {
    /// What logs call the link.
    pub name: String,
    /// The broker.
    pub endpoint: Endpoint,
    /// MQTT client identifier. A broker may replace it by the certificate's name.
    pub client_id: String,
    /// How often to ping, 5 s to 65,535 s. A connection without any sign of life for one and a
    /// half times as long is given up, and so is one that leaves a publication unacknowledged for
    /// twice as long.
    pub keep_alive: Duration,
    /// How long an attempt to connect and subscribe may take.
    pub connect_timeout: Duration,
    /// Waits between attempts.
    pub reconnect: Reconnect,
    /// Largest packet to receive, in bytes. The broker is told and drops larger ones.
    pub max_packet: usize,
    /// How many messages of at least once the broker is asked to send before the consumer has taken
    /// the first. Some brokers send more (mosquitto 2.0.11 does, by this number for each that is
    /// taken), therefore the next limit.
    pub receive_maximum: u16,
    /// How many bytes of messages may wait for the consumer. If more of at least once arrive, the
    /// connection ends with [`LinkError::Overrun`].
    pub inbox_bytes: usize,
    /// When messages of at least once are acknowledged.
    pub acknowledge: Acknowledge,
    /// How long the broker keeps subscriptions and unacknowledged messages when the connection has
    /// ended, for the next connection with this client id; whole seconds. Zero for not at all.
    pub session_expiry: Duration,
    /// What the broker publishes when the connection ends without good-bye.
    pub last_will: Option<Outgoing>,
    /// Topic filters to subscribe to on every connection.
    pub subscriptions: Vec<(String, Qos)>,
    /// Allows plain TCP to other machines. Whoever can read the network then reads the messages.
    pub allow_plain_remote: bool,
}

impl LinkConfig {
    /// A link that subscribes to nothing and leaves nothing at the broker, with a keep-alive of 30 s,
    /// packets of up to 1 MiB, and 16 messages ahead of the consumer or at most 16 MiB.
    #[must_use]
    pub fn new(name: impl Into<String>, endpoint: Endpoint, client_id: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            endpoint,
            client_id: client_id.into(),
            keep_alive: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(10),
            reconnect: Reconnect::default(),
            max_packet: 1024 * 1024,
            receive_maximum: 16,
            inbox_bytes: 16 * 1024 * 1024,
            acknowledge: Acknowledge::WhenTaken,
            session_expiry: Duration::ZERO,
            last_will: None,
            subscriptions: Vec::new(),
            allow_plain_remote: false,
        }
    }

    /// The client library's options, which it would check by panicking.
    pub(super) fn options(&self) -> Result<MqttOptions, LinkError> {
        let wrong = |problem: &str| Err(LinkError::Configuration(problem.to_owned()));
        if !(MIN_KEEP_ALIVE..=MAX_KEEP_ALIVE).contains(&self.keep_alive) {
            return wrong("the keep-alive must be 5 to 65,535 seconds");
        }
        if self.receive_maximum == 0 {
            return wrong("the receive maximum must be at least 1");
        }
        if self.client_id.len() > MAX_STRING_LEN {
            return wrong("the client id is too long");
        }
        let Ok(max_packet) = u32::try_from(self.max_packet) else {
            return wrong("the largest packet must be below 4 GiB");
        };
        for (filter, _) in &self.subscriptions {
            if !valid_filter(filter) || filter.len() > MAX_STRING_LEN {
                return wrong(&format!("{filter:?} is no topic filter"));
            }
        }
        let host = self.host()?;
        let mut options = MqttOptions::new(&self.client_id, host, self.endpoint.port);
        options
            .set_clean_start(self.session_expiry.is_zero())
            .set_keep_alive(self.keep_alive)
            .set_connection_timeout(self.connect_timeout.as_secs().max(1))
            .set_manual_acks(true)
            .set_outgoing_inflight_upper_limit(MAX_OUTSTANDING);
        let mut properties = ConnectProperties::new();
        properties.receive_maximum = Some(self.receive_maximum);
        properties.max_packet_size = Some(max_packet);
        if !self.session_expiry.is_zero() {
            let seconds = u32::try_from(self.session_expiry.as_secs()).unwrap_or(u32::MAX);
            properties.session_expiry_interval = Some(seconds.max(1));
        }
        options.set_connect_properties(properties);
        let mut network = options.network_options();
        network.set_tcp_nodelay(true);
        options.set_network_options(network);
        if let Some(tls) = &self.endpoint.tls {
            let tls = TlsConfiguration::Rustls(Arc::clone(tls));
            options.set_transport(Transport::tls_with_config(tls));
        }
        if let Some(will) = &self.last_will {
            if let Err(problem) = check(will) {
                return wrong(&format!("the last will: {problem}"));
            }
            if will.payload.len() > MAX_STRING_LEN {
                return wrong("the last will has more than 65,535 bytes");
            }
            options.set_last_will(last_will(will));
        }
        Ok(options)
    }

    /// The host as the client library wants it.
    fn host(&self) -> Result<String, LinkError> {
        let Endpoint { host, tls, .. } = &self.endpoint;
        let wrong = |problem: String| Err(LinkError::Configuration(problem));
        if host.is_empty() {
            return wrong("the broker's host is empty".to_owned());
        }
        let address = host.parse::<IpAddr>();
        let is_loopback = address.map_or(host == "localhost", |address| address.is_loopback());
        if tls.is_none() && !is_loopback && !self.allow_plain_remote {
            return wrong(format!(
                "{host} is not this machine, and without TLS everyone on the way can read: \
                 configure certificates, or use 127.0.0.1"
            ));
        }
        match (host.parse::<Ipv6Addr>(), tls) {
            (Err(_), _) => Ok(host.clone()),
            (Ok(address), None) => Ok(format!("[{address}]")),
            (Ok(_), Some(_)) => wrong(format!(
                "TLS to the IPv6 address {host} is not supported: use the broker's name"
            )),
        }
    }
}

/// What can be seen to be wrong with a message without a broker.
pub(super) fn check(outgoing: &Outgoing) -> Result<(), &'static str> {
    let topic = &outgoing.topic;
    if topic.is_empty() || topic.contains('\0') || !valid_topic(topic) {
        return Err("a topic is not empty and has no wildcards");
    }
    let content_type_len = outgoing.content_type.as_ref().map_or(0, String::len);
    let correlation_len = outgoing.correlation_data.as_ref().map_or(0, bytes::Bytes::len);
    if [topic.len(), content_type_len, correlation_len].iter().any(|len| *len > MAX_STRING_LEN) {
        return Err("topic, content type and correlation data have at most 65,535 bytes each");
    }
    Ok(())
}

/// Whole seconds, rounded up: a message must not expire before its time.
pub(super) fn expiry_seconds(outgoing: &Outgoing) -> Option<u32> {
    let expiry = outgoing.expiry?;
    let seconds = expiry.as_secs().saturating_add(u64::from(expiry.subsec_nanos() > 0));
    Some(u32::try_from(seconds).unwrap_or(u32::MAX))
}

pub(super) fn mqtt_qos(qos: Qos) -> QoS {
    match qos {
        Qos::AtMostOnce => QoS::AtMostOnce,
        Qos::AtLeastOnce => QoS::AtLeastOnce,
    }
}

fn last_will(will: &Outgoing) -> LastWill {
    let properties = LastWillProperties {
        delay_interval: None,
        payload_format_indicator: None,
        message_expiry_interval: expiry_seconds(will),
        content_type: will.content_type.clone(),
        response_topic: None,
        correlation_data: will.correlation_data.clone(),
        user_properties: Vec::new(),
    };
    let qos = mqtt_qos(will.qos);
    LastWill::new(&will.topic, will.payload.clone(), qos, will.retain, Some(properties))
}
