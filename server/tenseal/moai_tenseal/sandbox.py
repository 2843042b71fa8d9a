"""The process in which TenSEAL runs, and the thread that hands it work.

SEAL parses bytes that strangers made. So it runs in a process that has the models and the
keys of sessions, and nothing else: no signing key, no connection, no file to write.

Invariants:
- what ends, hangs or grows too large in there is one process, which is started anew; the job
  at hand is refused, and no other is lost;
- what comes out of it is parsed as carefully as what comes from robots;
- jobs are taken by turns, one of each tenant that waits; one is computed at a time.
"""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from . import cbor
from .contexts import Context
from .names import SessionKey
from .refusals import CODES, Refused

LENGTH_LEN = 4
MAX_REPLY_LEN = 512 * 1024
# The pipes, and /dev/urandom, which SEAL opens whenever it encrypts a zero.
MAX_FILES = 64
# An empty process answers within this; importing takes most of it.
START_SECONDS = 60.0


@dataclass(frozen=True)
class Limits:
    """What one process may take."""

    memory_bytes: int
    seconds: float
    prepared: int


@dataclass(frozen=True)
class Work:
    """Keys to prepare, or with a model a job to compute."""

    key: SessionKey
    context: Context
    key_digest: bytes
    keys: bytes = field(repr=False)
    number: int = 0
    model: str | None = None
    body: bytes = field(repr=False, default=b"")


@dataclass(frozen=True)
class Outcome:
    """What became of work."""

    work: Work
    result: bytes | Refused
    micros: int


class Died(Exception):
    """The process ended, or was ended, before it answered."""


class _Process:
    """One run of the process."""

    def __init__(self, models: Path, threads: int, limits: Limits) -> None:
        package = Path(__file__).parents[1]
        self._limits = limits
        self._child = subprocess.Popen(
            [
                *(sys.executable, "-B", "-m", f"{__package__}.sandbox"),
                *(str(models), str(threads), str(limits.memory_bytes)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
            env={"PYTHONPATH": str(package), "PATH": os.environ.get("PATH", "")},
        )
        self.prepared: OrderedDict[tuple[SessionKey, bytes], int] = OrderedDict()
        self._next_handle = 1
        try:
            with self._deadline(START_SECONDS):
                self._receive()
        except Died:
            self.end()
            raise

    def prepare(self, work: Work) -> None:
        """Have keys prepared unless they are."""
        name = (work.key, work.key_digest)
        if name in self.prepared:
            self.prepared.move_to_end(name)
            return
        while len(self.prepared) >= self._limits.prepared:
            _, oldest = self.prepared.popitem(last=False)
            self.ask({"forget": oldest})
        handle = self._next_handle
        self._next_handle += 1
        self.ask({"prepare": handle, "context": work.context.canonical(), "keys": work.keys})
        self.prepared[name] = handle

    def evaluate(self, work: Work) -> bytes:
        """Compute a job whose keys are prepared."""
        handle = self.prepared[(work.key, work.key_digest)]
        return self.ask({"evaluate": handle, "model": work.model, "body": work.body})

    def ask(self, request: dict[int | str, cbor.Item]) -> bytes:
        """Send a request and return the answer, or raise Refused or Died."""
        data = cbor.encode(request)
        pipe = self._child.stdin
        assert pipe is not None
        with self._deadline(self._limits.seconds):
            try:
                pipe.write(len(data).to_bytes(LENGTH_LEN) + data)
                pipe.flush()
            except OSError as error:
                raise Died from error
            answer = self._receive()
        match answer:
            case {"body": bytes() as body}:
                return body
            case {"code": str() as code, "message": str() as message} if code in CODES:
                raise Refused(code, message)
            case _:
                raise Died

    @contextmanager
    def _deadline(self, seconds: float) -> Iterator[None]:
        """Kill the process if this takes longer: it may neither read nor answer."""
        timer = threading.Timer(seconds, self._child.kill)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _receive(self) -> cbor.Item:
        length = int.from_bytes(self._read(LENGTH_LEN))
        if length > MAX_REPLY_LEN:
            raise Died
        try:
            return cbor.decode(self._read(length))
        except cbor.CborError as error:
            raise Died from error

    def _read(self, count: int) -> bytes:
        pipe = self._child.stdout
        assert pipe is not None
        data = pipe.read(count)
        if len(data) < count:
            raise Died
        return data

    @property
    def pid(self) -> int:
        """The process id."""
        return self._child.pid

    def end(self) -> None:
        """Kill it."""
        self._child.kill()
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    pass


class Sandbox:
    """Takes work and reports outcomes, from a thread of its own."""

    def __init__(
        self, models: Path, threads: int, limits: Limits, report: Callable[[Outcome], None]
    ) -> None:
        self._start: Callable[[], _Process] = lambda: _Process(models, threads, limits)
        self._report = report
        self._process: _Process | None = self._start()
        self._queues: OrderedDict[str, deque[Work]] = OrderedDict()
        self._forget: deque[SessionKey] = deque()
        self._changed = threading.Condition()
        self._is_stopped = False
        self._thread = threading.Thread(target=self._run, name="sandbox", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int | None:
        """The id of the process that computes."""
        process = self._process
        return None if process is None else process.pid

    def submit(self, work: Work) -> None:
        """Take work; its outcome is reported."""
        with self._changed:
            self._queues.setdefault(work.key.tenant, deque()).append(work)
            self._changed.notify()

    def waiting(self) -> int:
        """Return how much work waits."""
        with self._changed:
            return sum(map(len, self._queues.values()))

    def forget(self, key: SessionKey) -> None:
        """Drop a session's work and prepared keys."""
        with self._changed:
            for queue in self._queues.values():
                kept = [work for work in queue if work.key != key]
                queue.clear()
                queue.extend(kept)
            self._forget.append(key)
            self._changed.notify()

    def stop(self) -> None:
        """End process and thread."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify()
        process = self._process
        if process is not None:
            process.end()
        # It may wait for room where it reports, and nobody makes any.
        self._thread.join(timeout=1)

    def _next(self) -> Work | SessionKey | None:
        """Wait for the next thing to do; None to stop."""
        with self._changed:
            while True:
                if self._is_stopped:
                    return None
                if self._forget:
                    return self._forget.popleft()
                for tenant, queue in list(self._queues.items()):
                    # The next tenant's turn is next.
                    self._queues.move_to_end(tenant)
                    if queue:
                        return queue.popleft()
                    del self._queues[tenant]
                self._changed.wait()

    def _run(self) -> None:
        while (task := self._next()) is not None:
            try:
                if self._process is None:
                    self._process = self._start()
                if isinstance(task, Work):
                    self._do(self._process, task)
                else:
                    for name in [name for name in self._process.prepared if name[0] == task]:
                        self._process.ask({"forget": self._process.prepared.pop(name)})
            except Died:
                if self._process is not None:
                    self._process.end()
                    self._process = None
                if isinstance(task, Work) and not self._is_stopped:
                    refused = Refused("internal", "the evaluation failed")
                    self._report(Outcome(task, refused, 0))
            except Refused:
                # A forgotten handle is refused to nobody.
                pass

    def _do(self, process: _Process, work: Work) -> None:
        start = time.monotonic()
        result: bytes | Refused = b""
        try:
            process.prepare(work)
            start = time.monotonic() if work.model is not None else start
            if work.model is not None:
                result = process.evaluate(work)
        except Refused as refused:
            result = refused
        micros = int((time.monotonic() - start) * 1e6)
        self._report(Outcome(work, result, micros))


def _read_exactly(pipe: BinaryIO, count: int) -> bytes:
    data = pipe.read(count)
    if len(data) < count:
        raise EOFError
    return data


def main(models: Path, threads: int, memory_bytes: int) -> None:
    """Be the process: answer requests on standard input until it ends."""
    # Only the parent ends it: Ctrl-C in a terminal goes to the whole group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from .engine import Engine, Keys
    from .models import load

    known = load(models)
    contexts = {model.context.canonical(): model.context for model in known.values()}
    engine = Engine(known, threads)
    # Nothing but answers goes to the parent: libraries that print go to standard error.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_FILES, MAX_FILES))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    keys: dict[int, Keys] = {}

    def answer(request: cbor.Item) -> bytes:
        match request:
            case {"prepare": int() as handle, "context": bytes() as context, "keys": bytes() as data}:
                keys[handle] = engine.prepare(contexts[context], data)
            case {"evaluate": int() as handle, "model": str() as model, "body": bytes() as body}:
                return keys[handle].evaluate(model, body)
            case {"forget": int() as handle}:
                keys.pop(handle, None)
        return b""

    reply: dict[int | str, cbor.Item] = {"body": b""}
    while True:
        data = cbor.encode(reply)
        answers.write(len(data).to_bytes(LENGTH_LEN) + data)
        answers.flush()
        length = int.from_bytes(_read_exactly(sys.stdin.buffer, LENGTH_LEN))
        request = cbor.decode(_read_exactly(sys.stdin.buffer, length))
        try:
            reply = {"body": answer(request)}
        except Refused as refused:
            reply = {"code": refused.code, "message": refused.message}
        except MemoryError:
            reply = {"code": "too_large", "message": "it takes more memory than there may be"}


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    except EOFError:
        pass
