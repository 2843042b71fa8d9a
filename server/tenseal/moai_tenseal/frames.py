"""The frame that wraps every message of the uplink.

Invariants:
- lengths are checked before anything is parsed, the header is parsed before the body is
  touched, and nobody sees a body whose digest is not the one in the claims;
- a frame has one encoding: what decodes encodes to the same bytes again;
- a signed frame gives its claims and body only through a `verify` function.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import IntEnum
from hashlib import sha256
from typing import TypeVar

from . import cbor, names
from .refusals import Refused

MAGIC = b"MOAI"
VERSION = 1
PREFIX_LEN = 8
MAX_FRAME_LEN = 1 << 20
CLOCK_ALLOWANCE = 300
MAX_OPEN_LIFETIME = 5 * 60
MAX_FRAME_LIFETIME = 24 * 60 * 60
MAX_CHAIN_CERTIFICATES = 4
MAX_CHAIN_LEN = 3 * 1024
SIGNATURE_LEN = 64


class Kind(IntEnum):
    """What a frame holds."""

    OPEN = 1
    CHUNK = 2
    JOB = 3
    DELETE = 4
    HAVE = 5
    RESULT = 6
    ERROR = 7
    MODELS = 8
    CHALLENGE = 9
    ATTEST = 10


ROBOT_KINDS = frozenset({Kind.OPEN})
SESSION_KINDS = frozenset({Kind.JOB, Kind.DELETE, Kind.ATTEST})
SERVER_KINDS = frozenset(
    {Kind.HAVE, Kind.CHALLENGE, Kind.RESULT, Kind.ERROR, Kind.MODELS}
)
MAX_BODY_LEN = {
    Kind.OPEN: 65536,
    Kind.CHUNK: 122880,
    Kind.JOB: 458752,
    Kind.DELETE: 0,
    Kind.HAVE: 4096,
    Kind.RESULT: 262144,
    Kind.ERROR: 2048,
    Kind.MODELS: MAX_FRAME_LEN - PREFIX_LEN - 1024,
    Kind.CHALLENGE: 1024,
    Kind.ATTEST: 8192,
}
KEY_HEADER = cbor.encode({1: -8})
_NUMBERED = frozenset({Kind.OPEN, Kind.JOB, Kind.RESULT, Kind.MODELS})


def max_header_len(kind: Kind) -> int:
    """Return the longest header; opens carry the signer's certificates."""
    return 4096 if kind == Kind.OPEN else 1024


@dataclass(frozen=True)
class Claims:
    """Whom and what a frame concerns."""

    identity: str | None = None
    session: str | None = None
    number: int = 0
    model: str | None = None
    context: bytes | None = None
    expires_at: int = 0
    compute_micros: int | None = None
    tenant: str | None = None

    def check(self, kind: Kind) -> None:
        """Refuse claims that are missing or out of place for this kind."""
        concerns_robot = kind != Kind.MODELS
        is_numbered = kind in _NUMBERED
        may_be_numbered = is_numbered or kind in (Kind.CHUNK, Kind.ERROR)
        conditions = (
            (self.identity is not None) == concerns_robot,
            (self.session is not None) == concerns_robot,
            (self.tenant is None) == concerns_robot,
            self.number > 0 or not is_numbered,
            self.number == 0 or may_be_numbered,
            self.expires_at > 0 or kind == Kind.CHUNK,
            self.model is not None or kind not in (Kind.JOB, Kind.RESULT),
            self.context is not None or kind != Kind.OPEN,
            self.compute_micros is None or kind == Kind.RESULT,
        )
        if not all(conditions):
            raise Refused(
                "malformed_frame", f"the claims are not those of a {kind.name} frame"
            )

    def encode(self, body: bytes) -> bytes:
        """Return the payload of the header of a frame with this body."""
        session = None if self.session is None else bytes.fromhex(self.session.replace("-", ""))
        entries: list[cbor.Item] = [
            self.identity,
            session,
            self.number,
            self.model,
            self.context,
            sha256(body).digest(),
            self.expires_at,
            self.compute_micros,
            self.tenant,
        ]
        present = ((key, value) for key, value in enumerate(entries, 1) if value is not None)
        return cbor.encode(dict(present))


_T = TypeVar("_T", int, str, bytes)


def _malformed(reason: object) -> Refused:
    return Refused("malformed_frame", f"malformed frame: {reason}")


def _claim(entries: dict[int | str, cbor.Item], key: int, kind: type[_T]) -> _T | None:
    """Return a claim that may be absent, and refuse one of another type."""
    value = entries.get(key)
    if key in entries and (type(value) is not kind or (isinstance(value, int) and value < 0)):
        raise _malformed(f"claim {key} is malformed")
    return value if type(value) is kind else None


def _decode_claims(payload: bytes) -> tuple[Claims, bytes]:
    """Return the claims of a payload and the digest of the body."""
    entries = cbor.decode(payload)
    if not isinstance(entries, dict) or not cbor.is_canonical(payload, entries):
        raise _malformed("the claims are no map in the deterministic encoding")
    if not {3, 6, 7} <= entries.keys() <= set(range(1, 10)):
        raise _malformed("a claim is unknown or missing")
    session = _claim(entries, 2, bytes)
    claims = Claims(
        identity=_claim(entries, 1, str),
        session=None if session is None else names.session_from_bytes(session),
        number=_claim(entries, 3, int) or 0,
        model=_claim(entries, 4, str),
        context=_claim(entries, 5, bytes),
        expires_at=_claim(entries, 7, int) or 0,
        compute_micros=_claim(entries, 8, int),
        tenant=_claim(entries, 9, str),
    )
    digest = _claim(entries, 6, bytes) or b""
    valid = (
        claims.identity is None or names.is_identity(claims.identity),
        (claims.session is None) == (session is None),
        claims.model is None or names.is_id(claims.model),
        claims.context is None or len(claims.context) == 32,
        len(digest) == 32,
        claims.tenant is None or names.is_name(claims.tenant),
    )
    if not all(valid):
        raise _malformed("a claim is malformed")
    return claims, digest


@dataclass(frozen=True)
class Frame:
    """A frame that was verified, or a chunk, whose digest stands in a signed manifest."""

    kind: Kind
    claims: Claims
    body: bytes

    def check_topic(self, topic: names.UpTopic) -> None:
        """Refuse a frame that came on the topic of another kind, robot or session."""
        for what, differs in (
            ("kind", topic.kind != self.kind.name.lower()),
            ("robot", topic.key.identity != self.claims.identity),
            ("session", topic.key.session != self.claims.session),
        ):
            if differs:
                raise Refused(
                    "identity_mismatch", f"the frame came on the topic of another {what}"
                )

    def encode_chunk(self) -> bytes:
        """Return the bytes of a chunk."""
        if self.kind != Kind.CHUNK:
            raise ValueError("only chunks go unsigned")
        return _assemble(self, b"", b"")

    def encode_signed(self, protected: bytes, sign: Callable[[bytes], bytes]) -> bytes:
        """Return the bytes of a frame signed by whoever `sign` is."""
        payload = self.claims.encode(self.body)
        return _assemble(self, protected, sign(_to_be_signed(self.kind, protected, payload)))


def _to_be_signed(kind: Kind, protected: bytes, payload: bytes) -> bytes:
    """Return the Sig_structure of RFC 9052 section 4.4."""
    return cbor.encode(["Signature1", protected, MAGIC + bytes([VERSION, kind]), payload])


def _assemble(frame: Frame, protected: bytes, signature: bytes) -> bytes:
    kind, body = frame.kind, frame.body
    if len(body) > MAX_BODY_LEN[kind]:
        raise Refused("too_large", f"a {kind.name} frame cannot hold {len(body)} bytes")
    frame.claims.check(kind)
    header = cbor.encode([protected, {}, frame.claims.encode(body), signature])
    if len(header) > max_header_len(kind):
        raise Refused("too_large", f"the header of a {kind.name} frame is too long")
    prefix = MAGIC + bytes([VERSION, kind]) + len(header).to_bytes(2)
    return prefix + header + body


@dataclass(frozen=True)
class Signed:
    """A frame whose signature nobody has verified yet, but for chunks, which have none."""

    _frame: Frame
    protected: bytes
    signature: bytes
    chain: tuple[bytes, ...]

    @property
    def kind(self) -> Kind:
        """What the frame holds."""
        return self._frame.kind

    def message(self) -> bytes:
        """Return what was signed."""
        payload = self._frame.claims.encode(self._frame.body)
        return _to_be_signed(self.kind, self.protected, payload)

    def chunk(self) -> Frame:
        """Return a chunk."""
        if self.kind != Kind.CHUNK:
            raise _malformed(f"a {self.kind.name} frame is no chunk")
        return self._frame

    def verify_robot(
        self, identify: Callable[[tuple[bytes, ...], bytes, bytes], str], now: int
    ) -> Frame:
        """Return the frame if the robot that `identify` names signed it and it is fresh.

        `identify` takes certificates, message and signature; it refuses what no robot signed.
        """
        if self.kind not in ROBOT_KINDS:
            raise _malformed(f"robots do not sign {self.kind.name} frames")
        signer = identify(self.chain, self.message(), self.signature)
        if signer != self._frame.claims.identity:
            raise Refused(
                "identity_mismatch",
                f"the frame says that it is {self._frame.claims.identity}'s, but {signer} signed it",
            )
        return self._fresh(now)

    def verify_key(
        self, kinds: frozenset[Kind], verifies: Callable[[bytes, bytes], bool], now: int
    ) -> Frame:
        """Return the frame if it is of one of the kinds, its key signed it and it is fresh."""
        if self.kind not in kinds:
            raise _malformed(f"a {self.kind.name} frame does not come from there")
        if not verifies(self.message(), self.signature):
            raise Refused("bad_signature", "the frame's signature is not by the key that has to sign it")
        return self._fresh(now)

    def _fresh(self, now: int) -> Frame:
        expires_at = self._frame.claims.expires_at
        longest = MAX_OPEN_LIFETIME if self.kind == Kind.OPEN else MAX_FRAME_LIFETIME
        if expires_at + CLOCK_ALLOWANCE <= now or expires_at > now + longest + CLOCK_ALLOWANCE:
            raise Refused(
                "expired_frame",
                f"the frame is good until {expires_at} and it is {now} here; compare the clocks",
            )
        return self._frame


def decode(data: bytes) -> Signed:
    """Return the frame in these bytes, checked but for signature, expiry and topic."""
    if len(data) < PREFIX_LEN:
        raise _malformed("it is truncated")
    if data[:4] != MAGIC:
        raise _malformed("it does not begin with MOAI")
    if data[4] != VERSION:
        raise _malformed(f"version {data[4]} is not supported")
    try:
        kind = Kind(data[5])
    except ValueError as error:
        raise _malformed(f"unknown kind {data[5]}") from error
    header_len = int.from_bytes(data[6:8])
    body_len = len(data) - PREFIX_LEN - header_len
    if header_len > max_header_len(kind) or body_len > MAX_BODY_LEN[kind]:
        raise _malformed("header or body is too long for its kind")
    if body_len < 0:
        raise _malformed("it is truncated")
    header = data[PREFIX_LEN : PREFIX_LEN + header_len]
    body = data[PREFIX_LEN + header_len :]
    try:
        protected, payload, signature, chain = _decode_header(kind, header)
        claims, digest = _decode_claims(payload)
    except cbor.CborError as error:
        raise _malformed(error) from error
    claims.check(kind)
    if sha256(body).digest() != digest:
        raise _malformed("the body's digest is not the one in the header")
    return Signed(Frame(kind, claims, body), protected, signature, chain)


def _decode_header(
    kind: Kind, header: bytes
) -> tuple[bytes, bytes, bytes, tuple[bytes, ...]]:
    """Return protected header, payload, signature and certificates."""
    parts = cbor.decode(header)
    if not cbor.is_canonical(header, parts):
        raise _malformed("the header is not in the deterministic encoding")
    match parts:
        case [bytes() as protected, dict() as unprotected, bytes() as payload, bytes() as signature]:
            pass
        case _:
            raise _malformed("the header is no COSE_Sign1")
    if unprotected:
        raise _malformed("the header has unprotected parameters")
    is_bare = not protected and not signature
    if kind == Kind.CHUNK:
        if not is_bare:
            raise _malformed("a chunk is signed")
        return protected, payload, signature, ()
    if is_bare:
        raise Refused("bad_signature", f"a {kind.name} frame must be signed, and this one is not")
    if len(signature) != SIGNATURE_LEN:
        raise _malformed("a signature has 64 bytes")
    if kind in ROBOT_KINDS:
        return protected, payload, signature, _decode_chain(protected)
    if protected != KEY_HEADER:
        raise _malformed("the protected header is not that of its kind")
    return protected, payload, signature, ()


def robot_header(chain: tuple[bytes, ...]) -> bytes:
    """Return the protected header of an open with these certificates."""
    certificates: list[cbor.Item] = list(chain)
    return cbor.encode({1: -7, 33: certificates[0] if len(chain) == 1 else certificates})


def _decode_chain(protected: bytes) -> tuple[bytes, ...]:
    match cbor.decode(protected):
        case {1: -7, 33: bytes() as only, **rest} if not rest:
            chain = [only]
        case {1: -7, 33: list() as several, **rest} if not rest:
            chain = [entry for entry in several if isinstance(entry, bytes)]
        case _:
            raise _malformed("an open is signed with ES256 and carries its certificates")
    fits = 1 <= len(chain) <= MAX_CHAIN_CERTIFICATES and sum(map(len, chain)) <= MAX_CHAIN_LEN
    if not fits or robot_header(tuple(chain)) != protected:
        raise _malformed("there are no certificates, too many, or in another encoding")
    return tuple(chain)


def answer(
    kind: Kind, claims: Claims, body: bytes, key: names.SessionKey | None, expires_at: int
) -> Frame:
    """Return a frame of the server's, to a session or to all."""
    if key is not None:
        claims = replace(claims, identity=key.identity, session=key.session)
    return Frame(kind, replace(claims, expires_at=expires_at), body)
