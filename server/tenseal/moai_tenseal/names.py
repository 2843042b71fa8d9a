"""Identifiers and topics.

Invariants:
- what parses here is well formed for good: no identifier holds a character that means
  something in a topic or a filter;
- a topic has exactly one form.
"""

import re
import uuid
from dataclasses import dataclass

ROOT = "moai/v1"
MAX_TOPIC_LEN = 512

_NAME = re.compile(r"[a-z0-9-]{1,32}", re.ASCII)
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_UP_KINDS = frozenset({"chunk", "job", "delete", "attest"})


def is_name(text: str) -> bool:
    """Tell whether a text can name a tenant or a robot."""
    return _NAME.fullmatch(text) is not None


def is_id(text: str) -> bool:
    """Tell whether a text can be the id of a worker, a group or a model."""
    return _ID.fullmatch(text) is not None


def is_identity(text: str) -> bool:
    """Tell whether a text is `{tenant}.{robot}`."""
    tenant, dot, robot = text.partition(".")
    return bool(dot) and is_name(tenant) and is_name(robot)


def session_from_bytes(data: bytes) -> str | None:
    """Return the text of a session id, or None if the bytes are no UUID of version 7."""
    if len(data) != 16:
        return None
    identifier = uuid.UUID(bytes=data)
    is_v7 = data[6] >> 4 == 7 and identifier.variant == uuid.RFC_4122
    return str(identifier) if is_v7 else None


def session_from_text(text: str) -> str | None:
    """Return the text if it is a session id in its one form, else None."""
    try:
        data = uuid.UUID(text).bytes
    except ValueError:
        return None
    return text if session_from_bytes(data) == text else None


@dataclass(frozen=True)
class SessionKey:
    """A session of a robot. The same id of another robot is another session."""

    identity: str
    session: str

    @property
    def tenant(self) -> str:
        """Whose fleet the robot belongs to."""
        return self.identity.partition(".")[0]

    @property
    def robot(self) -> str:
        """The robot's name within the fleet."""
        return self.identity.partition(".")[2]

    def down(self, leaf: str) -> str:
        """Return the topic of an answer."""
        return f"{ROOT}/down/{self.identity}/{self.session}/{leaf}"


@dataclass(frozen=True)
class UpTopic:
    """Where a robot's frame came in: `kind` is the topic's last word, or `open`."""

    key: SessionKey
    kind: str
    worker: str | None


def parse_up(topic: str) -> UpTopic | None:
    """Return what a topic of a robot's frame says, or None if it is none."""
    if len(topic) > MAX_TOPIC_LEN or not topic.startswith(f"{ROOT}/up/"):
        return None
    match topic.split("/")[3:]:
        case [identity, "open", session]:
            kind, worker = "open", None
        case [identity, "to", worker, session, kind] if is_id(worker) and kind in _UP_KINDS:
            pass
        case _:
            return None
    if not is_identity(identity) or session_from_text(session) is None:
        return None
    return UpTopic(SessionKey(identity, session), kind, worker)


def worker_filters(group: str, worker: str) -> list[str]:
    """Return what a worker subscribes to."""
    return [f"$share/{group}/{ROOT}/up/+/open/+", f"{ROOT}/up/+/to/{worker}/+/+"]


def worker_status(worker: str) -> str:
    """Return the topic of a worker's status."""
    return f"{ROOT}/workers/{worker}/status"


def models(tenant: str) -> str:
    """Return the topic of a tenant's catalogue."""
    return f"{ROOT}/models/{tenant}"
