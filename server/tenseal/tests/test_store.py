"""Sessions: budgets, replays, and that what ends is gone."""

import unittest
from dataclasses import replace
from hashlib import sha256

from cryptography.hazmat.primitives.asymmetric import ed25519

from moai_tenseal import store
from moai_tenseal.contexts import Context
from moai_tenseal.messages import MAX_JOBS, Manifest
from moai_tenseal.names import SessionKey
from moai_tenseal.refusals import Refused

CONTEXT = Context(4096, (33, 28, 45), 2.0**28, False, False, (1,))
KEY = SessionKey("acme.r1", "018f4d2a-7c00-7abc-8def-0123456789ab")
CHUNKS = [b"a" * 100, b"b" * 100, b"c" * 50]
WHOLE = b"".join(CHUNKS)
BUDGET = store.Budget(sessions=2, bytes=1000)


def manifest(seed: int = 1, chunks: list[bytes] = CHUNKS) -> Manifest:
    key = ed25519.Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
    whole = b"".join(chunks)
    return Manifest(
        nonce=1,
        context=CONTEXT.id,
        ttl_seconds=600,
        session_key=key.public_key().public_bytes_raw(),
        key_len=len(whole),
        key_digest=sha256(whole).digest(),
        chunk_len=100,
        chunk_digests=tuple(sha256(chunk).digest() for chunk in chunks),
    )


class Sessions(unittest.TestCase):
    def setUp(self) -> None:
        self.store = store.Store()

    def open(
        self,
        number: int,
        key: SessionKey = KEY,
        of: Manifest | None = None,
        lifetime: float = 600,
        now: float = 0,
    ) -> tuple[store.Session, bool]:
        return self.store.open(key, of or manifest(), CONTEXT, number, lifetime, BUDGET, now)

    def code(self, call: object, *arguments: object, **named: object) -> str:
        with self.assertRaises(Refused) as caught:
            call(*arguments, **named)  # type: ignore[operator]
        return caught.exception.code

    def test_an_open_counts_once(self) -> None:
        self.open(5)
        for number in (5, 4, 1):
            self.assertEqual(self.code(self.open, number), "replayed")
        session, is_new = self.open(6)
        self.assertFalse(is_new)
        self.assertEqual(session.open_number, 6)

    def test_a_later_open_shortens_and_never_prolongs(self) -> None:
        self.open(1, lifetime=100)
        self.open(2, lifetime=600, now=50)
        self.store.get(KEY, 99)
        self.assertEqual(self.code(self.store.get, KEY, 100), "expired_session")
        self.open(3, lifetime=10, now=60)
        self.assertEqual(self.code(self.store.get, KEY, 70), "expired_session")

    def test_an_ended_session_stays_ended_while_an_open_of_it_could_be_fresh(self) -> None:
        self.open(1)
        self.assertTrue(self.store.end(KEY, 10))
        self.assertFalse(self.store.end(KEY, 10))
        self.store.verifier(KEY)
        for now in (11, 600, 600 + 899):
            self.assertEqual(self.code(self.open, 9, now=now), "expired_session")
        self.assertTrue(self.open(1, now=600 + 900)[1])

    def test_other_keys_begin_anew(self) -> None:
        session, _ = self.open(1)
        session.put_chunk(0, CHUNKS[0])
        again, is_new = self.open(2)
        self.assertFalse(is_new)
        self.assertEqual(again.bitmap(), b"\x01")
        other, is_new = self.open(3, of=manifest(2))
        self.assertTrue(is_new)
        self.assertEqual(other.bitmap(), b"\x00")

    def test_budgets_are_kept_and_other_tenants_untouched(self) -> None:
        def other(robot: str) -> SessionKey:
            return replace(KEY, identity=robot)

        self.open(1)
        self.open(1, other("acme.r2"))
        self.assertEqual(self.code(self.open, 1, other("acme.r3")), "busy")
        self.open(1, other("globex.r1"))
        self.store.end(KEY, 0)
        large = manifest(chunks=[bytes(100)] * 8)
        self.assertEqual(self.code(self.open, 1, other("acme.r3"), of=large), "too_large")
        for count in range(store.TOMBSTONES * BUDGET.sessions):
            key = other(f"acme.x{count}")
            if count == store.TOMBSTONES * BUDGET.sessions - 1:
                self.assertEqual(self.code(self.open, 1, key), "busy")
                break
            self.open(1, key)
            self.store.end(key, 0)

    def test_chunks_come_in_any_order_once_and_only_if_announced(self) -> None:
        session, _ = self.open(1)
        self.assertFalse(session.put_chunk(2, CHUNKS[2]))
        self.assertFalse(session.put_chunk(2, CHUNKS[2]))
        self.assertEqual(session.bitmap(), b"\x04")
        for index, data in ((0, CHUNKS[1]), (3, CHUNKS[0]), (0, b"")):
            self.assertEqual(self.code(session.put_chunk, index, data), "malformed_frame")
        self.assertFalse(session.put_chunk(0, CHUNKS[0]))
        self.assertTrue(session.put_chunk(1, CHUNKS[1]))
        self.assertEqual((session.keys, session.bitmap()), (WHOLE, b"\x07"))
        self.assertFalse(session.put_chunk(1, CHUNKS[1]))

    def test_chunks_that_are_another_whole_are_refused(self) -> None:
        lie = replace(manifest(), key_digest=bytes(32))
        session, _ = self.open(1, of=lie)
        for index in (0, 1):
            session.put_chunk(index, CHUNKS[index])
        self.assertEqual(self.code(session.put_chunk, 2, CHUNKS[2]), "malformed_ciphertext")

    def test_a_jobs_number_is_good_for_one_input(self) -> None:
        session, _ = self.open(1)
        self.assertIsNone(session.see(1, b"x"))
        session.note(1, b"x", "m")
        self.assertIsNotNone(session.see(1, b"x"))
        self.assertEqual(self.code(session.see, 1, b"y"), "number_reused")
        session.forget(1)
        self.assertIsNone(session.see(1, b"y"))
        for number in (0, MAX_JOBS + 1):
            self.assertEqual(self.code(session.see, number, b"x"), "too_large")

    def test_old_results_go_and_their_numbers_stay_used(self) -> None:
        session, _ = self.open(1)
        session.note(1, b"x", "m")
        for number in range(2, 200):
            session.note(number, b"x", "m")
            session.jobs[number].result = b"r"
        self.assertLessEqual(len(session.jobs), store.KEPT_RESULTS)
        self.assertIsNotNone(session.see(1, b"x"))
        self.assertEqual(self.code(session.see, 2, b"x"), "replayed")
        self.assertIsNotNone(session.see(199, b"x"))
        self.assertEqual(session.under_way(), 1)
