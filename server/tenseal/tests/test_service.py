"""The service with a computer and a broker that do what a test wants."""

import unittest
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
import tempfile

from cryptography.hazmat.primitives.asymmetric import ed25519

from moai_tenseal import cbor, config, frames, models, trust
from moai_tenseal.audit import Audit
from moai_tenseal.frames import Claims, Frame, Kind
from moai_tenseal.messages import MAX_CHUNK_LEN
from moai_tenseal.names import SessionKey
from moai_tenseal.refusals import Refused
from moai_tenseal.sandbox import Outcome, Work
from moai_tenseal.service import Clocks, Parts, Service

from . import golden
from .test_models import DIRECTORY

MODELS = models.load(DIRECTORY)
CONTEXT = MODELS["failure-linear"].context
KEY = SessionKey("acme.robot-1", "018f4d2a-7c00-7abc-8def-0123456789ab")
KEYS = bytes(range(256)) * 1000
TOML = """
worker_group = 'g'
models_directory = 'm'
signing_key = 'k'
max_waiting_jobs = 8
[tenants.acme]
max_jobs = 2
[tenants.globex]
models = ['grasp-mlp']
[broker]
host = 'b'
"""


class World:
    """A service, and what it said and gave to compute."""

    def __init__(
        self, audit: Path, toml: str = TOML, known: dict[str, models.Model] = MODELS
    ) -> None:
        self.wall, self.steady = float(golden.NOW), 0.0
        self.published: list[tuple[str, bytes]] = []
        self.work: list[Work] = []
        self.forgotten: list[SessionKey] = []
        self.service = Service(
            Parts(
                worker="w",
                config=config.read(toml, "f"),
                models=known,
                signing_key=trust.SigningKey(golden.SERVER_KEY),
                robots=golden.robots(),
                computer=self,
                publisher=self,
                audit=Audit(audit, "w"),
                clocks=Clocks(lambda: self.wall, lambda: self.steady),
            )
        )
        self.chain = frames.decode(golden.frame(Kind.OPEN)).chain

    def submit(self, work: Work) -> None:
        self.work.append(work)

    def forget(self, key: SessionKey) -> None:
        self.forgotten.append(key)

    def waiting(self) -> int:
        return 0

    def publish(
        self, topic: str, payload: bytes, expiry: int | None = None, retain: bool = False
    ) -> None:
        self.published.append((topic, payload))

    def said(self) -> list[Frame]:
        """Verify and return what was said since the last time."""
        verifies = trust.session_verifier(golden.SERVER_KEY.public_key().public_bytes_raw())
        said = [
            frames.decode(payload).verify_key(frames.SERVER_KINDS, verifies, int(self.wall))
            for topic, payload in self.published
            if not topic.endswith("/status")
        ]
        self.published.clear()
        return said

    def refused(self) -> tuple[str, int]:
        """Return code and number of the one thing that was said, a refusal."""
        (frame,) = self.said()
        assert frame.kind == Kind.ERROR, frame.kind
        body = cbor.decode(frame.body)
        assert isinstance(body, dict)
        return str(body["code"]), frame.claims.number

    def claims(self, number: int = 0, **changes: object) -> Claims:
        claims = Claims(
            identity=KEY.identity,
            session=KEY.session,
            number=number,
            context=CONTEXT.id,
            expires_at=int(self.wall) + 60,
        )
        return replace(claims, **changes)  # type: ignore[arg-type]

    def manifest(self, keys: bytes = KEYS, **changes: object) -> dict[int | str, cbor.Item]:
        chunks = [keys[at : at + MAX_CHUNK_LEN] for at in range(0, len(keys), MAX_CHUNK_LEN)]
        digests: list[cbor.Item] = [sha256(chunk).digest() for chunk in chunks]
        fields: dict[int | str, cbor.Item] = {
            "nonce": 7,
            "context": CONTEXT.id,
            "ttl_seconds": 600,
            "session_key": golden.SESSION_KEY.public_key().public_bytes_raw(),
            "key_len": len(keys),
            "key_digest": sha256(keys).digest(),
            "chunk_len": MAX_CHUNK_LEN,
            "chunk_digests": digests,
        }
        fields.update(changes)  # type: ignore[arg-type]
        return fields

    def open(self, number: int = 1, topic: str | None = None, **changes: object) -> None:
        claims = self.claims(number)
        if "context" in changes:
            claims = replace(claims, context=changes["context"])  # type: ignore[arg-type]
        frame = Frame(Kind.OPEN, claims, cbor.encode(self.manifest(**changes)))  # type: ignore[arg-type]
        data = frame.encode_signed(frames.robot_header(self.chain), golden.sign_as_robot)
        self.service.message(topic or f"moai/v1/up/{KEY.identity}/open/{KEY.session}", data)

    def chunk(self, index: int, data: bytes | None = None) -> None:
        at = index * MAX_CHUNK_LEN
        body = KEYS[at : at + MAX_CHUNK_LEN] if data is None else data
        self.to("chunk", Frame(Kind.CHUNK, self.claims(index), body).encode_chunk())

    def to(self, kind: str, data: bytes, worker: str = "w") -> None:
        topic = f"moai/v1/up/{KEY.identity}/to/{worker}/{KEY.session}/{kind}"
        self.service.message(topic, data)

    def signed(self, frame: Frame, key: ed25519.Ed25519PrivateKey = golden.SESSION_KEY) -> bytes:
        return frame.encode_signed(frames.KEY_HEADER, key.sign)

    def job(self, number: int, body: bytes = b"input", **changes: object) -> None:
        claims = self.claims(number, **{"model": "failure-linear", **changes})
        self.to("job", self.signed(Frame(Kind.JOB, claims, body)))

    def register(self) -> None:
        """Bring a session to where it takes jobs."""
        self.open()
        for index in range(3):
            self.chunk(index)
        self.service.outcome(Outcome(self.work.pop(), b"", 1))
        self.said()


class Serving(unittest.TestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.audit = Path(directory.name) / "audit.jsonl"
        self.world = World(self.audit)

    def have(self) -> dict[int | str, cbor.Item]:
        (frame,) = self.world.said()
        self.assertEqual(frame.kind, Kind.HAVE)
        body = cbor.decode(frame.body)
        assert isinstance(body, dict)
        return body

    def test_a_session_from_open_to_delete(self) -> None:
        world = self.world
        world.open()
        have = self.have()
        self.assertEqual(
            (have["worker"], have["nonce"], have["bitmap"], have["registered"]),
            ("w", 7, b"\0", False),
        )
        world.chunk(2)
        world.open(2, nonce=8)
        have = self.have()
        self.assertEqual((have["nonce"], have["bitmap"]), (8, b"\x04"))
        world.chunk(0)
        world.chunk(1)
        (work,) = world.work
        self.assertEqual((work.keys, work.model), (KEYS, None))
        self.assertEqual(world.said(), [])
        world.service.outcome(Outcome(work, b"", 5000))
        have = self.have()
        self.assertEqual((have["bitmap"], have["registered"]), (b"\x07", True))

        world.job(1)
        world.job(1)
        work = world.work[-1]
        self.assertEqual((len(world.work), work.body, work.model), (2, b"input", "failure-linear"))
        self.assertEqual(world.said(), [])
        world.service.outcome(Outcome(work, b"result", 1234))
        world.job(1)
        first, again = world.said()
        for frame in (first, again):
            self.assertEqual((frame.kind, frame.body, frame.claims.number), (Kind.RESULT, b"result", 1))
            self.assertEqual(frame.claims.compute_micros, 1234)
            self.assertEqual((frame.claims.model, frame.claims.context), ("failure-linear", CONTEXT.id))
        self.assertEqual(len(world.work), 2)

        world.to("delete", world.signed(Frame(Kind.DELETE, world.claims(), b"")))
        self.assertEqual(world.said(), [])
        self.assertIn(KEY, world.forgotten)
        world.job(2)
        self.assertEqual(world.refused(), ("expired_session", 2))
        world.open(3)
        self.assertEqual(world.refused(), ("expired_session", 0))
        events = [line.split('"event": "')[1].split('"')[0] for line in self.audit.read_text().splitlines()]
        expected = ["opened", "registered", "computed", "deleted", "refused", "refused"]
        self.assertEqual(events, expected)
        self.assertEqual(self.audit.stat().st_mode & 0o777, 0o600)

    def test_a_session_is_over_after_its_time_and_its_keys_are_gone(self) -> None:
        world = self.world
        world.register()
        world.steady = 600.0
        world.service.tick()
        self.assertIn(KEY, world.forgotten)
        world.said()
        world.job(1)
        self.assertEqual(world.refused(), ("expired_session", 1))

    def test_the_catalogue_is_of_the_tenants_models_and_comes_again(self) -> None:
        world = self.world
        world.service.announce()
        world.steady = 6 * 3600
        world.wall += 6 * 3600
        count = len(world.published)
        world.service.tick()
        self.assertGreater(len(world.published), count)
        catalogues = {frame.claims.tenant: cbor.decode(frame.body) for frame in world.said()}
        ids = {
            tenant: [card["id"] for card in cards]  # type: ignore[call-overload, index, union-attr]
            for tenant, cards in catalogues.items()
        }
        self.assertEqual(ids, {"acme": sorted(MODELS), "globex": ["grasp-mlp"]})

    def test_whose_signature_is_not_right_is_refused(self) -> None:
        world = self.world
        world.register()
        frame = Frame(Kind.JOB, world.claims(1, model="failure-linear"), b"x")
        world.to("job", world.signed(frame, golden.SERVER_KEY))
        self.assertEqual(world.refused(), ("bad_signature", 0))
        stale = replace(frame, claims=replace(frame.claims, expires_at=int(world.wall) - 300))
        world.to("job", world.signed(stale))
        self.assertEqual(world.refused(), ("expired_frame", 0))
        world.to("delete", world.signed(frame))
        self.assertEqual(world.refused(), ("identity_mismatch", 1))
        world.to("job", b"garbage")
        self.assertEqual(world.refused(), ("malformed_frame", 0))
        world.to("job", world.signed(frame), worker="another")
        world.service.message("moai/v1/up/acme.robot-1/status", world.signed(frame))
        self.assertEqual(world.said(), [])
        self.assertEqual(world.work, [])

    def test_an_open_is_for_its_own_topic(self) -> None:
        other = "018f4d2a-7c00-7abc-8def-0123456789ac"
        self.world.open(topic=f"moai/v1/up/{KEY.identity}/open/{other}")
        self.assertEqual(self.world.refused(), ("identity_mismatch", 0))

    def test_a_replayed_open_is_refused(self) -> None:
        self.world.open(5)
        self.world.said()
        self.world.open(5)
        self.assertEqual(self.world.refused(), ("replayed", 0))

    def test_a_manifest_that_cannot_be_is_refused(self) -> None:
        largest = CONTEXT.max_key_len
        too_many = [bytes(32)] * -(-(largest + 1) // MAX_CHUNK_LEN)
        wrong: list[tuple[str, dict[str, object]]] = [
                ("unknown_model", {"context": bytes(32)}),
                ("too_large", {"key_len": largest + 1, "chunk_digests": too_many}),
                ("malformed_frame", {"nonce": -1}),
                ("malformed_frame", {"nonce": True}),
                ("malformed_frame", {"ttl_seconds": 0}),
                ("malformed_frame", {"ttl_seconds": 1 << 32}),
                ("malformed_frame", {"key_len": 0}),
                ("malformed_frame", {"chunk_len": MAX_CHUNK_LEN + 1}),
                ("malformed_frame", {"chunk_digests": [bytes(32)] * 2}),
                ("malformed_frame", {"chunk_digests": [bytes(31)] * 3}),
                ("malformed_frame", {"chunk_digests": bytes(96)}),
                ("malformed_frame", {"session_key": bytes(32)}),
                ("malformed_frame", {"key_digest": bytes(31)}),
                ("malformed_frame", {"extra": 1}),
        ]
        for number, (code, changes) in enumerate(wrong, 1):
            with self.subTest(changes=list(changes)):
                self.world.open(number, **changes)  # type: ignore[arg-type]
                self.assertEqual(self.world.refused(), (code, 0))

    def test_chunks_are_for_a_session_that_announced_them(self) -> None:
        world = self.world
        world.chunk(0)
        self.assertEqual(world.refused(), ("unknown_session", 0))
        world.open()
        world.said()
        world.chunk(1, b"another")
        self.assertEqual(world.refused(), ("malformed_frame", 0))
        world.chunk(3, b"")
        self.assertEqual(world.refused(), ("malformed_frame", 0))

    def test_keys_that_are_refused_end_their_session(self) -> None:
        world = self.world
        world.open()
        for index in range(3):
            world.chunk(index)
        world.said()
        refused = Refused("malformed_ciphertext", "no")
        world.service.outcome(Outcome(world.work[-1], refused, 1))
        self.assertEqual(world.refused(), ("malformed_ciphertext", 0))
        world.open(2)
        self.assertEqual(world.refused(), ("expired_session", 0))

    def test_jobs_that_cannot_be_are_refused(self) -> None:
        world = self.world
        world.open()
        world.said()
        world.job(1)
        self.assertEqual(world.refused(), ("unknown_session", 1))
        world.to("delete", world.signed(Frame(Kind.DELETE, world.claims(), b"")))
        world = self.world = World(self.audit)
        world.register()
        for code, number, changes in (
            ("unknown_model", 1, {"model": "nonesuch"}),
            ("unknown_model", 1, {"model": "grasp-mlp"}),
            ("malformed_frame", 1, {"context": bytes(32)}),
            ("malformed_frame", 1, {"context": None}),
            ("too_large", 10_001, {}),
        ):
            world.job(number, **changes)
            self.assertEqual(world.refused(), (code, number))
        world.job(1)
        world.job(1, b"another")
        self.assertEqual(world.refused(), ("number_reused", 1))
        world.job(2)
        world.job(3)
        self.assertEqual(world.refused(), ("busy", 3))
        world.service.outcome(Outcome(world.work[0], Refused("internal", "no"), 1))
        self.assertEqual(world.refused(), ("internal", 1))
        world.job(1)
        self.assertEqual((len(world.work), world.said()), (3, []))

    def test_evidence_is_not_asked_for(self) -> None:
        world = self.world
        world.register()
        world.to("attest", world.signed(Frame(Kind.ATTEST, world.claims(), b"evidence")))
        self.assertEqual(world.refused(), ("unknown_session", 0))

    def test_what_an_earlier_beginning_computed_is_nobodys(self) -> None:
        world = self.world
        world.register()
        world.job(1)
        work = world.work[-1]
        other = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32))
        world.open(2, keys=KEYS[1:], session_key=other.public_key().public_bytes_raw())
        world.said()
        world.service.outcome(Outcome(work, b"result", 1))
        # Nor are the keys registered that belonged to it.
        world.service.outcome(Outcome(replace(work, model=None), b"", 1))
        self.assertEqual(world.said(), [])

    def test_models_that_a_tenant_does_not_see_do_not_exist_for_it(self) -> None:
        world = World(self.audit, TOML.replace("max_jobs = 2", "models = ['grasp-linear']"))
        world.open()
        self.assertEqual(world.refused(), ("unknown_model", 0))
        sees_another = replace(MODELS["failure-linear"], id="another")
        both = {**MODELS, "another": sees_another}
        world = World(self.audit, TOML.replace("max_jobs = 2", "models = ['another']"), both)
        world.register()
        world.job(1)
        self.assertEqual(world.refused(), ("unknown_model", 1))
        world.job(1, model="another")
        self.assertEqual((len(world.work), world.said()), (1, []))
