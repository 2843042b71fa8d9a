"""The connection to the broker: paho's MQTT 5 client over mTLS.

Invariants:
- every connection begins clean, subscribes anew and is reported; nothing relies on what the
  broker remembers of an earlier one;
- what arrives is capped by the broker's own rules (it is told our largest packet) and by the
  receiver's queue: when that is full, the newest is dropped, for whoever sent it asks again;
- while there is no connection nothing is kept to be sent: robots ask again.
"""

import logging
import queue
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from .config import Broker
from .frames import MAX_FRAME_LEN

log = logging.getLogger(__name__)

MAX_PACKET_LEN = MAX_FRAME_LEN + 4096
# What we take before it is acknowledged, and what we send at most before it is: few enough for
# any broker, whose own limit paho does not heed.
RECEIVE_MAXIMUM = 64
SEND_MAXIMUM = 10
MAX_QUEUED = 1024
# What MQTT puts around a payload, with room for a topic and properties.
PACKET_OVERHEAD = 1024
RECONNECT_SECONDS = (1, 30)


@dataclass(frozen=True)
class Message:
    """What arrived."""

    topic: str
    payload: bytes


@dataclass(frozen=True)
class Connected:
    """A new connection, subscribed."""


@dataclass(frozen=True)
class Disconnected:
    """The connection is gone; another is tried."""

    reason: str


Event = Message | Connected | Disconnected


def _send_at_once(_: mqtt.Client, __: object, sock: socket.socket) -> None:
    """Hold nothing back until what was sent before is acknowledged, which takes 40 ms."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class Link:
    """A connection that comes back."""

    def __init__(
        self,
        broker: Broker,
        client_id: str,
        filters: list[str],
        will: tuple[str, bytes],
        deliver: Callable[[Event], None],
    ) -> None:
        self._broker = broker
        self._filters = filters
        self._deliver = deliver
        self._client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=client_id, protocol=MQTTProtocolVersion.MQTTv5
        )
        tls = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=str(broker.ca))
        tls.minimum_version = ssl.TLSVersion.TLSv1_2
        tls.load_cert_chain(broker.certificate, broker.key)
        self._client.tls_set_context(tls)
        self._client.will_set(will[0], will[1], qos=1, retain=True)
        self._client.reconnect_delay_set(*RECONNECT_SECONDS)
        self._client.max_inflight_messages_set(SEND_MAXIMUM)
        self._client.max_queued_messages_set(MAX_QUEUED)
        self._max_packet_len = MAX_PACKET_LEN
        self._client.on_socket_open = _send_at_once
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message

    def start(self) -> None:
        """Connect, and again whenever the connection breaks."""
        properties = Properties(PacketTypes.CONNECT)
        properties.MaximumPacketSize = MAX_PACKET_LEN
        properties.ReceiveMaximum = RECEIVE_MAXIMUM
        properties.SessionExpiryInterval = 0
        self._client.connect_async(
            self._broker.host,
            self._broker.port,
            keepalive=self._broker.keep_alive,
            clean_start=True,
            properties=properties,
        )
        self._client.loop_start()

    def publish(
        self, topic: str, payload: bytes, expiry: int | None = None, retain: bool = False
    ) -> None:
        """Send, if there is a connection."""
        if not self._client.is_connected():
            log.debug("not published, for there is no connection; robots ask again")
            return
        if len(payload) + PACKET_OVERHEAD > self._max_packet_len:
            log.error(
                "not published: %d bytes are more than the broker takes (%d); raise its "
                "largest packet",
                len(payload),
                self._max_packet_len,
            )
            return
        properties = Properties(PacketTypes.PUBLISH)
        if expiry is not None:
            properties.MessageExpiryInterval = expiry
        self._client.publish(topic, payload, qos=1, retain=retain, properties=properties)

    def stop(self, topic: str, payload: bytes) -> None:
        """Publish a last message, retained, and disconnect."""
        if self._client.is_connected():
            self._client.publish(topic, payload, qos=1, retain=True).wait_for_publish(2)
        self._client.disconnect()
        self._client.loop_stop()

    def _on_connect(
        self, client: mqtt.Client, _: object, __: object, code: object, properties: object
    ) -> None:
        if getattr(code, "is_failure", False):
            self._deliver(Disconnected(f"the broker refuses: {code}"))
            return
        largest = getattr(properties, "MaximumPacketSize", MAX_PACKET_LEN)
        self._max_packet_len = min(MAX_PACKET_LEN, largest)
        client.subscribe([(filter_, SubscribeOptions(qos=1)) for filter_ in self._filters])

    def _on_subscribe(
        self, _: mqtt.Client, __: object, ___: int, codes: list[ReasonCode], ____: object
    ) -> None:
        refused = [str(code) for code in codes if code.is_failure]
        if refused:
            log.error("the broker refuses a subscription: %s", refused[0])
        self._deliver(Connected())

    def _on_disconnect(
        self, _: mqtt.Client, __: object, ___: object, code: object, ____: object
    ) -> None:
        self._deliver(Disconnected(str(code)))

    def _on_message(self, _: mqtt.Client, __: object, message: mqtt.MQTTMessage) -> None:
        self._deliver(Message(message.topic, bytes(message.payload)))


def into(events: "queue.Queue[object]") -> Callable[[object], None]:
    """Return what puts events in a queue, and drops messages that it has no room for."""

    def deliver(event: object) -> None:
        try:
            events.put(event, block=not isinstance(event, Message))
        except queue.Full:
            log.warning("too much arrives at a time; a message is dropped")

    return deliver
