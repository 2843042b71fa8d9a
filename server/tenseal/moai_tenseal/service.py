"""The service: owns the sessions of a worker and turns frames into answers.

Invariants:
- a frame is used only if the key that has to sign it did, and topic and claims agree on who
  is speaking; before that nothing looks at what it says;
- every answer is signed, and every refusal has a code a robot can act on;
- logs name sessions, contexts, models and times; never a byte of key or ciphertext.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from . import cbor, frames, messages, names
from .audit import Audit
from .config import Config
from .contexts import Context
from .frames import Claims, Frame, Kind
from .messages import Manifest
from .models import Model
from .names import SessionKey
from .refusals import Refused
from .sandbox import Outcome, Work
from .store import Session, Store
from .trust import Robots, SigningKey

log = logging.getLogger(__name__)

# An answer nobody fetched for so long is asked for again by the robot anyway.
ANSWER_SECONDS = 60
CATALOGUE_SECONDS = frames.MAX_FRAME_LIFETIME
# A catalogue is issued again long before it expires.
CATALOGUE_INTERVAL = 6 * 3600


class Publisher(Protocol):
    """Where answers go."""

    def publish(
        self, topic: str, payload: bytes, expiry: int | None = None, retain: bool = False
    ) -> None:
        """Send a message."""


class Computer(Protocol):
    """What computes."""

    def submit(self, work: Work) -> None:
        """Take work, whose outcome comes back later."""

    def forget(self, key: SessionKey) -> None:
        """Drop what is known of a session."""

    def waiting(self) -> int:
        """Return how much work waits."""


@dataclass(frozen=True)
class Clocks:
    """The wall clock in seconds since 1970, and one that never jumps, in seconds."""

    wall: Callable[[], float]
    steady: Callable[[], float]


@dataclass(frozen=True)
class Parts:
    """What a service is made of."""

    worker: str
    config: Config
    models: Mapping[str, Model]
    signing_key: SigningKey
    robots: Robots
    computer: Computer
    publisher: Publisher
    audit: Audit
    clocks: Clocks


class Service:
    """The owner of a worker's sessions."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._store = Store()
        self._next_catalogue = 0.0

    def announce(self) -> None:
        """Say that this worker is up, and what it computes."""
        worker = self._parts.worker
        self._parts.publisher.publish(
            names.worker_status(worker),
            messages.encode_worker_status(worker, True),
            retain=True,
        )
        self._issue_catalogues()

    def tick(self) -> None:
        """Do what is due: call it every second."""
        now = self._parts.clocks.steady()
        for key in self._store.expire(now):
            self._parts.computer.forget(key)
            log.info("session %s of %s expired, keys deleted", key.session, key.identity)
            self._audit(key, "expired", None)
        if now >= self._next_catalogue:
            self._issue_catalogues()

    def message(self, topic_text: str, payload: bytes) -> None:
        """Take a message, and answer it if it is to be answered."""
        topic = names.parse_up(topic_text)
        if topic is None or topic.worker not in (None, self._parts.worker):
            log.warning("a message on an unknown topic was dropped")
            return
        number = 0
        try:
            signed = frames.decode(payload)
            if signed.kind == Kind.CHUNK:
                frame = signed.chunk()
                frame.check_topic(topic)
                self._chunk(topic.key, frame)
            elif signed.kind == Kind.OPEN:
                frame = signed.verify_robot(self._identify, self._now())
                frame.check_topic(topic)
                self._open(topic.key, frame)
            else:
                verifies = self._store.verifier(topic.key)
                frame = signed.verify_key(frames.SESSION_KINDS, verifies, self._now())
                number = frame.claims.number if frame.kind == Kind.JOB else 0
                frame.check_topic(topic)
                self._of_session(topic.key, frame)
        except Refused as refused:
            self._refuse(topic.key, number, refused)

    def outcome(self, outcome: Outcome) -> None:
        """Take what became of keys or of a job."""
        work = outcome.work
        try:
            session = self._store.get(work.key, self._parts.clocks.steady())
        except Refused:
            self._parts.computer.forget(work.key)
            return
        if session.manifest.key_digest != work.key_digest:
            # It began anew under other keys meanwhile.
            return
        if work.model is None:
            self._prepared(work.key, session, outcome)
        else:
            self._computed(work, session, outcome)

    def _now(self) -> int:
        return int(self._parts.clocks.wall())

    def _identify(self, chain: tuple[bytes, ...], message: bytes, signature: bytes) -> str:
        return self._parts.robots.identify(chain, message, signature, self._now())

    def _of_session(self, key: SessionKey, frame: Frame) -> None:
        match frame.kind:
            case Kind.JOB:
                self._job(key, frame)
            case Kind.DELETE:
                self._end(key, "deleted")
            case _:
                raise Refused("unknown_session", "this server asks for no evidence")

    def _open(self, key: SessionKey, frame: Frame) -> None:
        tenant = self._parts.config.tenants.get(key.tenant)
        if tenant is None:
            raise Refused(
                "unknown_model", f"this server has no models for the tenant {key.tenant}"
            )
        manifest = Manifest.decode(frame.body)
        visible = (model.context for model in self._parts.models.values() if tenant.sees(model.id))
        context = next((context for context in visible if context.id == manifest.context), None)
        if context is None or frame.claims.context != manifest.context:
            raise Refused("unknown_model", "no model here is of the open's context")
        if manifest.key_len > context.max_key_len:
            raise Refused(
                "too_large",
                f"the keys have {manifest.key_len} bytes, and those of the context at most "
                f"{context.max_key_len}",
            )
        now = self._parts.clocks.steady()
        lifetime = min(manifest.ttl_seconds, self._parts.config.max_ttl)
        session, is_new = self._store.open(
            key, manifest, context, frame.claims.number, lifetime, tenant.budget, now
        )
        if is_new:
            # There may be prepared keys of an earlier beginning.
            self._parts.computer.forget(key)
            log.info("session %s of %s opens for %d s", key.session, key.identity, lifetime)
            facts = {"key_bytes": manifest.key_len, "attested": False}
            self._audit(key, "opened", context, ttl_seconds=lifetime, **facts)
        if session.keys is None or session.is_registered:
            self._say_have(key, session)

    def _chunk(self, key: SessionKey, frame: Frame) -> None:
        session = self._store.get(key, self._parts.clocks.steady())
        try:
            is_last = session.put_chunk(frame.claims.number, frame.body)
        except Refused as refused:
            if refused.code == "malformed_ciphertext":
                self._end(key, None)
            raise
        if is_last:
            self._parts.computer.submit(self._work(key, session))

    def _work(self, key: SessionKey, session: Session) -> Work:
        assert session.keys is not None
        return Work(key, session.context, session.manifest.key_digest, session.keys)

    def _prepared(self, key: SessionKey, session: Session, outcome: Outcome) -> None:
        if isinstance(outcome.result, Refused):
            self._end(key, None)
            self._refuse(key, 0, outcome.result)
            return
        session.is_registered = True
        log.info("keys of session %s registered", key.session)
        self._audit(key, "registered", session.context, prepare_ms=outcome.micros // 1000)
        self._say_have(key, session)

    def _job(self, key: SessionKey, frame: Frame) -> None:
        session = self._store.get(key, self._parts.clocks.steady())
        if not session.is_registered:
            raise Refused("unknown_session", "its keys are not here yet")
        number = frame.claims.number
        job = session.see(number, frame.body)
        if job is not None:
            if job.result is not None:
                self._say_result(key, number, job.model, job.result, job.micros)
            return
        if frame.claims.context != session.manifest.context:
            raise Refused("malformed_frame", "the job's context is not its session's")
        config = self._parts.config
        tenant = config.tenants[key.tenant]
        model = self._parts.models.get(frame.claims.model or "")
        if model is None or model.context != session.context or not tenant.sees(model.id):
            raise Refused("unknown_model", "no such model here, or not in the session's context")
        if self._store.under_way(key.tenant) >= tenant.max_jobs:
            raise Refused("busy", f"{tenant.max_jobs} jobs are under way, the limit max_jobs")
        if self._parts.computer.waiting() >= config.max_waiting_jobs:
            raise Refused("busy", "too many jobs wait")
        session.note(number, frame.body, model.id)
        prepare = self._work(key, session)
        self._parts.computer.submit(
            Work(
                key, prepare.context, prepare.key_digest, prepare.keys, number, model.id, frame.body
            )
        )

    def _computed(self, work: Work, session: Session, outcome: Outcome) -> None:
        job = session.jobs.get(work.number)
        if job is None or work.model is None:
            return
        if isinstance(outcome.result, Refused):
            session.forget(work.number)
            self._refuse(work.key, work.number, outcome.result)
            return
        job.result, job.micros = outcome.result, outcome.micros
        facts = {"model": work.model, "compute_ms": outcome.micros // 1000}
        log.info("job %d of session %s computed: %s", work.number, work.key.session, facts)
        self._audit(work.key, "computed", session.context, job=work.number, **facts)
        self._say_result(work.key, work.number, work.model, outcome.result, outcome.micros)

    def _end(self, key: SessionKey, event: str | None) -> None:
        was_there = self._store.end(key, self._parts.clocks.steady())
        self._parts.computer.forget(key)
        if was_there and event is not None:
            log.info("session %s of %s and its keys deleted", key.session, key.identity)
            self._audit(key, event, None)

    def _say_have(self, key: SessionKey, session: Session) -> None:
        body = messages.encode_have(
            self._parts.worker,
            session.manifest.nonce,
            session.bitmap(),
            session.is_registered,
        )
        self._send(key, Kind.HAVE, Claims(context=session.context.id), body)

    def _say_result(
        self, key: SessionKey, number: int, model: str, body: bytes, micros: int
    ) -> None:
        context = self._parts.models[model].context.id
        claims = Claims(number=number, model=model, context=context, compute_micros=micros)
        self._send(key, Kind.RESULT, claims, body)

    def _refuse(self, key: SessionKey, number: int, refused: Refused) -> None:
        code, message = refused.code, refused.message
        log.warning(
            "refused (%s) job %d of session %s of %s: %s",
            *(code, number, key.session, key.identity, message),
        )
        self._audit(key, "refused", None, code=code, message=message, job=number)
        body = messages.encode_error(code, message)
        self._send(key, Kind.ERROR, Claims(number=number), body)

    def _send(self, key: SessionKey, kind: Kind, claims: Claims, body: bytes) -> None:
        expires_at = self._now() + ANSWER_SECONDS
        frame = frames.answer(kind, claims, body, key, expires_at)
        payload = frame.encode_signed(frames.KEY_HEADER, self._parts.signing_key.sign)
        self._parts.publisher.publish(key.down(kind.name.lower()), payload, ANSWER_SECONDS)

    def _issue_catalogues(self) -> None:
        wall = self._parts.clocks.wall()
        self._next_catalogue = self._parts.clocks.steady() + CATALOGUE_INTERVAL
        for name, tenant in self._parts.config.tenants.items():
            visible = [model for model in self._parts.models.values() if tenant.sees(model.id)]
            cards: list[cbor.Item] = [model.card() for model in visible]
            claims = Claims(number=int(wall * 1000), tenant=name)
            expires_at = int(wall) + CATALOGUE_SECONDS
            frame = frames.answer(Kind.MODELS, claims, cbor.encode(cards), None, expires_at)
            payload = frame.encode_signed(frames.KEY_HEADER, self._parts.signing_key.sign)
            self._parts.publisher.publish(names.models(name), payload, retain=True)

    def _audit(
        self, key: SessionKey, event: str, context: Context | None, **facts: object
    ) -> None:
        now_ms = int(self._parts.clocks.wall() * 1000)
        name = None if context is None else context.id
        self._parts.audit.record(key, now_ms, event, name, **facts)
