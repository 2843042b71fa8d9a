"""What frames hold: bodies of opens, haves and errors, and statuses.

Invariants:
- bodies are maps with exactly the keys of their kind; other types are errors;
- a decoded manifest is consistent in itself and within the given limit.
"""

import json
from dataclasses import dataclass
from typing import TypeVar

from . import cbor
from .refusals import Refused
from .trust import session_verifier

MAX_CHUNK_LEN = 122880
MAX_CHUNKS = 1536
MAX_JOBS = 10_000
MAX_ERROR_MESSAGE_LEN = 512
_MANIFEST = frozenset(
    {
        "nonce",
        "context",
        "ttl_seconds",
        "session_key",
        "key_len",
        "key_digest",
        "chunk_len",
        "chunk_digests",
    }
)
_T = TypeVar("_T", int, bytes)


def _malformed(reason: object) -> Refused:
    return Refused("malformed_frame", f"malformed manifest: {reason}")


def _of(entries: dict[int | str, cbor.Item], name: str, kind: type[_T]) -> _T:
    value = entries[name]
    # A boolean is an int to Python and none to the protocol.
    if type(value) is not kind:
        raise _malformed(f"{name} has another type")
    return value


@dataclass(frozen=True)
class Manifest:
    """What evaluation keys a session has, and into what chunks they are cut."""

    nonce: int
    context: bytes
    ttl_seconds: int
    session_key: bytes
    key_len: int
    key_digest: bytes
    chunk_len: int
    chunk_digests: tuple[bytes, ...]

    @classmethod
    def decode(cls, body: bytes) -> "Manifest":
        """Return the manifest in the body of an open, or refuse."""
        try:
            entries = cbor.decode(body)
        except cbor.CborError as error:
            raise _malformed(error) from error
        if not isinstance(entries, dict) or entries.keys() != _MANIFEST:
            raise _malformed("its keys are not those of a manifest")
        digests = entries["chunk_digests"]
        chunk_digests = (
            tuple(entry for entry in digests if isinstance(entry, bytes) and len(entry) == 32)
            if isinstance(digests, list)
            else ()
        )
        if not isinstance(digests, list) or len(chunk_digests) != len(digests):
            raise _malformed("chunk_digests are no digests")
        manifest = cls(
            nonce=_of(entries, "nonce", int),
            context=_of(entries, "context", bytes),
            ttl_seconds=_of(entries, "ttl_seconds", int),
            session_key=_of(entries, "session_key", bytes),
            key_len=_of(entries, "key_len", int),
            key_digest=_of(entries, "key_digest", bytes),
            chunk_len=_of(entries, "chunk_len", int),
            chunk_digests=chunk_digests,
        )
        manifest.check()
        return manifest

    def check(self) -> None:
        """Refuse a manifest whose parts do not fit."""
        conditions = (
            (0 <= self.nonce < 1 << 64, "the nonce has more than 64 bits"),
            (1 <= self.ttl_seconds < 1 << 32, "the lifetime is 0 or too long"),
            (len(self.context) == len(self.key_digest) == 32, "a digest has 32 bytes"),
            (1 <= self.chunk_len <= MAX_CHUNK_LEN, "the chunk length is 0 or above 120 KiB"),
            (1 <= self.key_len < 1 << 64, "there are no keys"),
            (1 <= len(self.chunk_digests) <= MAX_CHUNKS, "there are no chunks or too many"),
        )
        for holds, problem in conditions:
            if not holds:
                raise _malformed(problem)
        if -(-self.key_len // self.chunk_len) != len(self.chunk_digests):
            raise _malformed("the chunks do not cover the keys")
        try:
            session_verifier(self.session_key)
        except ValueError as error:
            raise _malformed(error) from error


def encode_have(worker: str, nonce: int, bitmap: bytes, registered: bool) -> bytes:
    """Return the body of a have."""
    return cbor.encode(
        {"worker": worker, "nonce": nonce, "bitmap": bitmap, "registered": registered}
    )


def encode_error(code: str, message: str) -> bytes:
    """Return the body of an error; a message that is too long is cut."""
    cut = message.encode()[:MAX_ERROR_MESSAGE_LEN].decode(errors="ignore")
    return cbor.encode({"code": code, "message": cut})


def encode_worker_status(worker: str, up: bool) -> bytes:
    """Return the payload of a worker's status topic."""
    return json.dumps({"worker": worker, "up": up}, separators=(",", ":")).encode()
