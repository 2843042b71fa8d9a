"""The process that computes: it may die, and nothing else does."""

import os
import queue
import signal
import unittest

from moai_tenseal.names import SessionKey
from moai_tenseal.refusals import Refused
from moai_tenseal.sandbox import Limits, Outcome, Sandbox, Work

from .test_engine import MODELS, prepared
from .test_models import DIRECTORY

# Its product has TenSEAL encrypt a zero, for which it needs randomness.
NAME = "grasp-linear"
PATIENCE = 60


class Processes(unittest.TestCase):
    def setUp(self) -> None:
        self.outcomes: queue.Queue[Outcome] = queue.Queue()
        self.robot, self.keys, _, _ = prepared(NAME)
        self.model = MODELS[NAME]
        self.input = self.robot.encrypt(self.model, [[0.5] * 24])

    def sandbox(self, memory: int = 4 << 30, prepared_keys: int = 2) -> Sandbox:
        limits = Limits(memory, PATIENCE, prepared_keys)
        sandbox = Sandbox(DIRECTORY, 1, limits, self.outcomes.put)
        self.addCleanup(sandbox.stop)
        return sandbox

    def work(self, number: int, robot: str = "acme.r1", **changes: object) -> Work:
        fields: dict[str, object] = {
            "key": SessionKey(robot, "018f4d2a-7c00-7abc-8def-0123456789ab"),
            "context": self.model.context,
            "key_digest": b"digest",
            "keys": self.keys,
            "number": number,
            "model": NAME,
            "body": self.input,
        }
        fields.update(changes)
        return Work(**fields)  # type: ignore[arg-type]

    def outcome(self) -> Outcome:
        return self.outcomes.get(timeout=PATIENCE)

    def computed(self) -> int:
        outcome = self.outcome()
        assert isinstance(outcome.result, bytes), outcome.result
        (scores,) = self.robot.decrypt(self.model, outcome.result)
        for score, expected in zip(scores, self.model.scores([0.5] * 24), strict=True):
            self.assertLess(abs(score - expected), self.model.error)
        return outcome.work.number

    def test_keys_are_prepared_and_jobs_computed(self) -> None:
        sandbox = self.sandbox()
        sandbox.submit(self.work(0, model=None, body=b""))
        self.assertEqual(self.outcome().result, b"")
        sandbox.submit(self.work(1))
        self.assertEqual(self.computed(), 1)

    def test_more_keys_than_are_kept_prepared_are_loaded_again(self) -> None:
        sandbox = self.sandbox(prepared_keys=1)
        for number, robot in enumerate(["acme.r1", "acme.r2", "acme.r1"]):
            sandbox.submit(self.work(number, robot))
        self.assertEqual([self.computed() for _ in range(3)], [0, 1, 2])

    def test_refusals_come_out(self) -> None:
        sandbox = self.sandbox()
        for work, code in (
            (self.work(1, keys=b"none"), "malformed_ciphertext"),
            (self.work(2, body=b"none"), "malformed_ciphertext"),
            (self.work(3, model="nonesuch"), "unknown_model"),
        ):
            sandbox.submit(work)
            result = self.outcome().result
            assert isinstance(result, Refused)
            self.assertEqual(result.code, code)

    def test_after_its_death_there_is_another(self) -> None:
        sandbox = self.sandbox()
        sandbox.submit(self.work(1))
        self.computed()
        first = sandbox.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        sandbox.submit(self.work(2))
        result = self.outcome().result
        assert isinstance(result, Refused)
        self.assertEqual(result.code, "internal")
        sandbox.submit(self.work(2))
        self.assertEqual(self.computed(), 2)
        self.assertNotEqual(sandbox.pid, first)

    def test_tenants_take_turns(self) -> None:
        sandbox = self.sandbox()
        # A process that is stopped computes nothing while work is queued.
        assert sandbox.pid is not None
        os.kill(sandbox.pid, signal.SIGSTOP)
        for number in range(4):
            sandbox.submit(self.work(number))
        sandbox.submit(self.work(9, "globex.r1"))
        os.kill(sandbox.pid, signal.SIGCONT)
        order = [self.computed() for _ in range(5)]
        self.assertLess(order.index(9), 3, order)

    def test_it_can_write_no_file_and_has_a_limit_of_memory(self) -> None:
        sandbox = self.sandbox(memory=1 << 30)
        with open(f"/proc/{sandbox.pid}/limits") as file:
            limits = {line[:26].strip(): line[26:].split()[:1] for line in file}
        self.assertEqual(limits["Max address space"], [str(1 << 30)])
        self.assertEqual(limits["Max open files"], ["64"])
        for name in ("Max file size", "Max core file size"):
            self.assertEqual(limits[name], ["0"])
        with open(f"/proc/{sandbox.pid}/environ", "rb") as environment:
            names = {entry.split(b"=")[0] for entry in environment.read().split(b"\0")}
        self.assertLessEqual(names, {b"", b"PATH", b"PYTHONPATH", b"LC_CTYPE"})
