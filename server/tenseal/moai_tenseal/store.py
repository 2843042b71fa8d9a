"""The sessions of this worker: in memory, for their time only.

Invariants:
- a session belongs to the robot that opened it, and what it holds goes with it, at once;
- an open counts once, and none of a session that has ended, for as long as one could be fresh;
- a later open never prolongs a session;
- a job's number is good for one input for as long as the session lives;
- nothing is written anywhere: a restart forgets everything.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256

from .contexts import Context
from .frames import CLOCK_ALLOWANCE, MAX_OPEN_LIFETIME
from .messages import MAX_JOBS, Manifest
from .names import SessionKey
from .refusals import Refused
from .trust import session_verifier

# For so long after a session's end an open of it may still be fresh.
OPENS_OUTLIVE = MAX_OPEN_LIFETIME + 2 * CLOCK_ALLOWANCE
# Ended sessions that are remembered for each that may be open.
TOMBSTONES = 64
# Results kept for each session.
KEPT_RESULTS = 64


@dataclass(frozen=True)
class Budget:
    """What a tenant may have in the store."""

    sessions: int
    bytes: int


@dataclass
class Job:
    """A job that waits or was computed lately."""

    input_digest: bytes
    model: str
    result: bytes | None = None
    micros: int = 0


@dataclass
class Session:
    """One session."""

    manifest: Manifest
    context: Context
    open_number: int
    expires: float
    verifies: Callable[[bytes, bytes], bool] = field(init=False)
    chunks: dict[int, bytes] = field(default_factory=dict, repr=False)
    keys: bytes | None = field(default=None, repr=False)
    is_registered: bool = False
    jobs: OrderedDict[int, Job] = field(default_factory=OrderedDict, repr=False)
    used: set[int] = field(default_factory=set, repr=False)

    def __post_init__(self) -> None:
        """Make ready what verifies its frames."""
        self.verifies = session_verifier(self.manifest.session_key)

    def is_continued_by(self, manifest: Manifest) -> bool:
        """Tell whether an open with this manifest goes on with the session."""
        mine, its = self.manifest, manifest
        return (mine.key_digest, mine.session_key, mine.context, mine.chunk_digests) == (
            its.key_digest,
            its.session_key,
            its.context,
            its.chunk_digests,
        )

    def bitmap(self) -> bytes:
        """Return which chunks are held."""
        count = len(self.manifest.chunk_digests)
        bits = bytearray(-(-count // 8))
        for index in range(count) if self.keys is not None else self.chunks:
            bits[index // 8] |= 1 << index % 8
        return bytes(bits)

    def put_chunk(self, index: int, data: bytes) -> bool:
        """Take a chunk; return whether it was the last. Refuse one that was not announced."""
        digests = self.manifest.chunk_digests
        if index >= len(digests):
            raise Refused("malformed_frame", f"chunk {index} does not exist")
        if sha256(data).digest() != digests[index]:
            raise Refused(
                "malformed_frame", f"chunk {index} is not the one its manifest announced"
            )
        if self.keys is not None or index in self.chunks:
            return False
        self.chunks[index] = data
        if len(self.chunks) < len(digests):
            return False
        whole = b"".join(self.chunks[index] for index in range(len(digests)))
        self.chunks.clear()
        manifest = self.manifest
        if len(whole) != manifest.key_len or sha256(whole).digest() != manifest.key_digest:
            raise Refused(
                "malformed_ciphertext", "the keys are not those the manifest announced"
            )
        self.keys = whole
        return True

    def see(self, number: int, body: bytes) -> Job | None:
        """Return the job of this number if it is known, None if it is new, or refuse."""
        if not 1 <= number <= MAX_JOBS:
            raise Refused("too_large", f"a session has jobs 1 to {MAX_JOBS}; open another")
        job = self.jobs.get(number)
        if job is not None:
            if job.input_digest != sha256(body).digest():
                raise Refused("number_reused", f"job {number} has another input than before")
            return job
        if number in self.used:
            raise Refused("replayed", f"job {number} was answered, and its answer is not kept")
        return None

    def note(self, number: int, body: bytes, model: str) -> None:
        """Remember a job that is under way."""
        self.used.add(number)
        self.jobs[number] = Job(sha256(body).digest(), model)
        computed = [number for number, job in self.jobs.items() if job.result is not None]
        for oldest in computed[: max(0, len(self.jobs) - KEPT_RESULTS)]:
            del self.jobs[oldest]

    def forget(self, number: int) -> None:
        """Forget a job that could not be computed: it may come again."""
        self.jobs.pop(number, None)
        self.used.discard(number)

    def under_way(self) -> int:
        """Return how many jobs wait or are computed."""
        return sum(job.result is None for job in self.jobs.values())


@dataclass(frozen=True)
class _Tombstone:
    until: float
    verifies: Callable[[bytes, bytes], bool]


class Store:
    """All sessions, and the names of those that ended."""

    def __init__(self) -> None:
        self._sessions: dict[SessionKey, Session] = {}
        self._ended: dict[SessionKey, _Tombstone] = {}

    def open(
        self,
        key: SessionKey,
        manifest: Manifest,
        context: Context,
        number: int,
        lifetime: float,
        budget: Budget,
        now: float,
    ) -> tuple[Session, bool]:
        """Take a session in, or go on with it; return it and whether it is new. Or refuse."""
        self.expire(now)
        if key in self._ended:
            raise ended()
        known = self._sessions.get(key)
        if known is not None:
            if number <= known.open_number:
                raise Refused(
                    "replayed",
                    f"an open of number {known.open_number} was here before, and only newer "
                    "ones count",
                )
            if known.is_continued_by(manifest):
                known.manifest, known.open_number = manifest, number
                known.expires = min(known.expires, now + lifetime)
                return known, False
        self._check_budget(key, manifest.key_len, budget)
        session = Session(manifest, context, number, now + lifetime)
        self._sessions[key] = session
        return session, True

    def _check_budget(self, key: SessionKey, key_len: int, budget: Budget) -> None:
        tenant = key.tenant
        others = [
            session
            for other, session in self._sessions.items()
            if other.tenant == tenant and other != key
        ]
        stones = sum(other.tenant == tenant for other in self._ended)
        if stones >= TOMBSTONES * budget.sessions:
            raise Refused("busy", "too many sessions of the tenant ended lately")
        if len(others) >= budget.sessions:
            raise Refused(
                "busy",
                f"the tenant has {budget.sessions} sessions open, its limit max_sessions",
            )
        if sum(session.manifest.key_len for session in others) + key_len > budget.bytes:
            raise Refused(
                "too_large",
                f"the tenant's keys would exceed {budget.bytes} bytes, its limit max_bytes",
            )

    def get(self, key: SessionKey, now: float) -> Session:
        """Return a session that lives, or refuse."""
        session = self._sessions.get(key)
        if session is not None and session.expires > now:
            return session
        if session is not None or key in self._ended:
            raise ended()
        raise Refused("unknown_session", "the session is unknown here; open it again")

    def verifier(self, key: SessionKey) -> Callable[[bytes, bytes], bool]:
        """Return what verifies frames of a session that lives or ended lately, or refuse."""
        known = self._sessions.get(key) or self._ended.get(key)
        if known is None:
            raise Refused("unknown_session", "the session is unknown here; open it again")
        return known.verifies

    def end(self, key: SessionKey, now: float) -> bool:
        """End a session; return whether it lived."""
        session = self._sessions.pop(key, None)
        if session is None:
            return False
        until = max(session.expires, now) + OPENS_OUTLIVE
        self._ended[key] = _Tombstone(until, session.verifies)
        return True

    def expire(self, now: float) -> list[SessionKey]:
        """End every session whose time is over; return which."""
        over = [key for key, session in self._sessions.items() if session.expires <= now]
        for key in over:
            self.end(key, now)
        for key in [key for key, stone in self._ended.items() if stone.until <= now]:
            del self._ended[key]
        return over

    def under_way(self, tenant: str) -> int:
        """Return how many jobs of a tenant wait or are computed."""
        return sum(
            session.under_way() for key, session in self._sessions.items() if key.tenant == tenant
        )


def ended() -> Refused:
    """A session that is over."""
    return Refused("expired_session", "the session is over; open another")
