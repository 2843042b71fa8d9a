//! Why links go down and publications fail, and what to do about it.

use rumqttc::TlsError;
use rumqttc::v5::mqttbytes::Error as CodecError;
use rumqttc::v5::mqttbytes::v5::{ConnectReturnCode, DisconnectReasonCode};
use rumqttc::v5::{ConnectionError, StateError};
use rustls::AlertDescription;

/// Why a link is down.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The configuration cannot be used. The link has ended.
    #[error("the link cannot be configured so: {0}")]
    Configuration(String),
    /// The broker's certificate is not to be trusted, or the broker does not trust ours.
    #[error(
        "TLS: {0}; check the authority file, the certificates' validity against the clock, and \
         that the host name is the one in the broker's certificate"
    )]
    Certificate(String),
    /// The broker does not want this client.
    #[error("the broker refuses this client ({0}); check its access rules for our certificate")]
    Refused(String),
    /// The broker does not grant a subscription.
    #[error("the broker refuses the subscription {filter} ({reason}); check its access rules")]
    Subscription {
        /// The topic filter.
        filter: String,
        /// What the broker says.
        reason: String,
    },
    /// Another client uses our client identifier.
    #[error("another client took over with our client identifier; give each its own certificate")]
    TakenOver,
    /// The broker does not keep to MQTT 5.
    #[error("the broker does not speak MQTT 5 as it should: {0}")]
    Protocol(String),
    /// A message was larger than the broker takes, and it had not said so when we connected.
    #[error(
        "the broker refused a message as too large and cut the connection; let it announce its \
         limit (mosquitto: max_packet_size instead of message_size_limit)"
    )]
    TooLarge,
    /// There is no connection to be had at the moment.
    #[error("the broker cannot be reached: {0}")]
    Unreachable(String),
    /// The broker is too busy or is shutting down.
    #[error("the broker is not available: {0}")]
    Unavailable(String),
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// Messages that must not be lost arrived faster than they were taken, and there was no room
    /// left for them. What the broker still had for us is lost.
    #[error("messages arrive faster than they are taken; the connection begins anew")]
    Overrun,
    /// The connection is open and nothing comes through it.
    #[error("the connection is stalled: {0}")]
    Stalled(&'static str),
}

impl LinkError {
    /// Whether a person has to set something right. If not, the link comes back by itself.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        match self {
            Self::Configuration(_)
            | Self::Certificate(_)
            | Self::Refused(_)
            | Self::Subscription { .. }
            | Self::TakenOver
            | Self::Protocol(_)
            | Self::TooLarge => true,
            Self::Unreachable(_)
            | Self::Unavailable(_)
            | Self::Broken(_)
            | Self::Overrun
            | Self::Stalled(_) => false,
        }
    }
}

/// Why a publication failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The link is down, or went down before the acknowledgement: the message may or may not have
    /// arrived. Publish again when the link is up.
    #[error("the link is down")]
    Down,
    /// The link has ended.
    #[error("the link has ended")]
    Closed,
    /// The broker takes no message so large. Nothing was sent.
    #[error("the message has {len} bytes, the broker takes at most {max}; raise its limit")]
    TooLarge {
        /// Size of the MQTT packet.
        len: usize,
        /// The broker's limit.
        max: usize,
    },
    /// The message cannot be sent at all. Nothing was sent.
    #[error("the message cannot be published: {0}")]
    Invalid(&'static str),
    /// The broker took notice and refused.
    #[error("the broker refused the message ({0}); check its access rules and quotas")]
    Refused(String),
}

impl PublishError {
    /// Whether the same publication may succeed on this link at another time.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Down)
    }
}

impl From<ConnectionError> for LinkError {
    fn from(error: ConnectionError) -> Self {
        match error {
            ConnectionError::MqttState(error) => state_error(error),
            ConnectionError::Timeout(_) => Self::Unreachable("no answer in time".to_owned()),
            ConnectionError::Tls(TlsError::Io(error)) => {
                io_error(&error).unwrap_or_else(|| Self::Unreachable(error.to_string()))
            }
            ConnectionError::Tls(error) => Self::Certificate(error.to_string()),
            ConnectionError::Io(error) => Self::Unreachable(error.to_string()),
            ConnectionError::ConnectionRefused(code) => refusal(code),
            ConnectionError::NotConnAck(_) => {
                Self::Protocol("something else came where CONNACK was due".to_owned())
            }
            error @ ConnectionError::RequestsDone => Self::Broken(error.to_string()),
        }
    }
}

fn state_error(error: StateError) -> LinkError {
    match error {
        StateError::Io(error) | StateError::Deserialization(CodecError::Io(error)) => {
            io_error(&error).unwrap_or_else(|| LinkError::Broken(error.to_string()))
        }
        StateError::ConnectionAborted => {
            LinkError::Broken("the broker closed the connection".to_owned())
        }
        StateError::AwaitPingResp => LinkError::Stalled("no answer to a ping"),
        StateError::ServerDisconnect { reason_code, .. } => disconnection(reason_code),
        // The reason code "packet too large" (0x95), which the client library does not know in an
        // acknowledgement.
        StateError::Deserialization(CodecError::InvalidConnectReturnCode(0x95)) => {
            LinkError::TooLarge
        }
        error => LinkError::Protocol(error.to_string()),
    }
}

/// What TLS says in an I/O error; none if it is not about certificates.
fn io_error(error: &std::io::Error) -> Option<LinkError> {
    let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    // Our own key did not sign, perhaps because the TPM is busy, or the broker is.
    let is_passing = matches!(
        error,
        rustls::Error::General(_)
            | rustls::Error::AlertReceived(
                AlertDescription::CloseNotify
                    | AlertDescription::InternalError
                    | AlertDescription::UserCanceled
            )
    );
    match error {
        _ if is_passing => None,
        rustls::Error::AlertReceived(alert) => Some(LinkError::Certificate(format!(
            "the broker refuses our certificate or our TLS ({alert:?})"
        ))),
        error => Some(LinkError::Certificate(error.to_string())),
    }
}

fn refusal(code: ConnectReturnCode) -> LinkError {
    use ConnectReturnCode as Code;
    let reason = format!("{code:?}");
    match code {
        Code::ServiceUnavailable
        | Code::ServerUnavailable
        | Code::ServerBusy
        | Code::QuotaExceeded
        | Code::ConnectionRateExceeded
        | Code::UnspecifiedError
        | Code::ImplementationSpecificError => LinkError::Unavailable(reason),
        _ => LinkError::Refused(reason),
    }
}

fn disconnection(code: DisconnectReasonCode) -> LinkError {
    use DisconnectReasonCode as Code;
    let reason = format!("{code:?}");
    match code {
        Code::SessionTakenOver => LinkError::TakenOver,
        Code::NotAuthorized => LinkError::Refused(reason),
        Code::PacketTooLarge => LinkError::TooLarge,
        Code::MalformedPacket
        | Code::ProtocolError
        | Code::TopicFilterInvalid
        | Code::TopicNameInvalid
        | Code::ReceiveMaximumExceeded
        | Code::TopicAliasInvalid
        | Code::PayloadFormatInvalid
        | Code::RetainNotSupported
        | Code::QoSNotSupported => LinkError::Protocol(format!("it says we do not: {reason}")),
        _ => LinkError::Unavailable(reason),
    }
}
