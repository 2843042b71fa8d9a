"""Frames: the golden ones, and what is refused."""

import unittest
from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from moai_tenseal import cbor, frames, trust
from moai_tenseal.frames import Claims, Frame, Kind
from moai_tenseal.names import SessionKey, UpTopic
from moai_tenseal.refusals import Refused

from . import golden

PUBLIC = {
    key: trust.session_verifier(key.public_key().public_bytes_raw())
    for key in (golden.SESSION_KEY, golden.SERVER_KEY)
}


def identify(chain: tuple[bytes, ...], message: bytes, signature: bytes) -> str:
    return golden.robots().identify(chain, message, signature, golden.NOW)


def verify(signed: frames.Signed, now: int = golden.NOW) -> Frame:
    if signed.kind == Kind.CHUNK:
        return signed.chunk()
    if signed.kind == Kind.OPEN:
        return signed.verify_robot(identify, now)
    if signed.kind in frames.SESSION_KINDS:
        return signed.verify_key(frames.SESSION_KINDS, PUBLIC[golden.SESSION_KEY], now)
    return signed.verify_key(frames.SERVER_KINDS, PUBLIC[golden.SERVER_KEY], now)


class GoldenFrames(unittest.TestCase):
    def test_each_is_verified_and_written_again_byte_for_byte(self) -> None:
        for kind in Kind:
            with self.subTest(kind.name):
                data = golden.frame(kind)
                signed = frames.decode(data)
                frame = verify(signed)
                self.assertEqual(frame.kind, kind)
                if kind == Kind.CHUNK:
                    again = frame.encode_chunk()
                elif kind == Kind.OPEN:
                    header = frames.robot_header(signed.chain)
                    again = frame.encode_signed(header, golden.sign_as_robot)
                else:
                    is_session = kind in frames.SESSION_KINDS
                    key = golden.SESSION_KEY if is_session else golden.SERVER_KEY
                    again = frame.encode_signed(frames.KEY_HEADER, key.sign)
                self.assertEqual(again, data)

    def test_no_byte_can_be_changed(self) -> None:
        for kind in Kind:
            data = golden.frame(kind)
            # A chunk's claims are anybody's: what counts is the body, by the manifest.
            first = data.index(b"evaluation keys") if kind == Kind.CHUNK else 0
            for index in range(first, len(data)):
                changed = bytearray(data)
                changed[index] ^= 0x01
                with self.subTest(kind.name, index=index), self.assertRaises(Refused):
                    verify(frames.decode(bytes(changed)))

    def test_no_byte_can_be_missing(self) -> None:
        for kind in Kind:
            data = golden.frame(kind)
            for end in range(len(data)):
                with self.assertRaises(Refused):
                    frames.decode(data[:end])

    def test_a_frame_is_good_for_its_time(self) -> None:
        for now, good in (
            (1_800_000_000 + 299, True),
            (1_800_000_000 + 300, False),
            (1_800_000_000 - 600, True),
            (1_800_000_000 - 601, False),
        ):
            if good:
                verify(frames.decode(golden.frame(Kind.OPEN)), now)
                continue
            with self.assertRaises(Refused) as caught:
                verify(frames.decode(golden.frame(Kind.OPEN)), now)
            self.assertEqual(caught.exception.code, "expired_frame")

    def test_another_kind_of_signer_verifies_nothing(self) -> None:
        for kind in Kind:
            signed = frames.decode(golden.frame(kind))
            for kinds, key in (
                (frames.SESSION_KINDS, golden.SERVER_KEY),
                (frames.SERVER_KINDS, golden.SESSION_KEY),
            ):
                with self.assertRaises(Refused):
                    signed.verify_key(kinds, PUBLIC[key], golden.NOW)


class Refusals(unittest.TestCase):
    def setUp(self) -> None:
        self.job = verify(frames.decode(golden.frame(Kind.JOB)))

    def code(self, data: bytes) -> str:
        with self.assertRaises(Refused) as caught:
            verify(frames.decode(data))
        return caught.exception.code

    def sealed(self, frame: Frame, key: Ed25519PrivateKey = golden.SESSION_KEY) -> bytes:
        return frame.encode_signed(frames.KEY_HEADER, key.sign)

    def test_a_foreign_key_and_a_missing_signature_are_told(self) -> None:
        self.assertEqual(self.code(self.sealed(self.job, golden.SERVER_KEY)), "bad_signature")
        payload = self.job.claims.encode(self.job.body)
        header = cbor.encode([b"", {}, payload, b""])
        bare = b"MOAI\x01\x03" + len(header).to_bytes(2) + header + self.job.body
        self.assertEqual(self.code(bare), "bad_signature")

    def test_another_robots_name_is_told(self) -> None:
        signed = frames.decode(golden.frame(Kind.OPEN))
        open_ = signed.verify_robot(identify, golden.NOW)
        claims = replace(open_.claims, identity="acme.robot-2")
        header = frames.robot_header(signed.chain)
        data = replace(open_, claims=claims).encode_signed(header, golden.sign_as_robot)
        self.assertEqual(self.code(data), "identity_mismatch")

    def test_every_kind_has_its_cap(self) -> None:
        for kind, cap in frames.MAX_BODY_LEN.items():
            claims = self.job.claims
            if kind == Kind.MODELS:
                claims = Claims(number=1, expires_at=1_800_000_000, tenant="acme")
            elif kind in (Kind.DELETE, Kind.HAVE, Kind.CHALLENGE, Kind.ATTEST):
                claims = replace(claims, number=0)
            frame = Frame(kind, claims, bytes(cap))
            if kind == Kind.CHUNK:
                frames.decode(frame.encode_chunk())
            elif kind != Kind.OPEN:
                data = self.sealed(frame)
                frames.decode(data)
                self.assertLessEqual(len(data), frames.MAX_FRAME_LEN)
                self.assertEqual(self.code(data + b"\0"), "malformed_frame")
            with self.assertRaises(Refused):
                self.sealed(replace(frame, body=bytes(cap + 1)))

    def test_claims_out_of_place_are_refused(self) -> None:
        for change in (
            {"number": 0},
            {"model": None},
            {"expires_at": 0},
            {"tenant": "acme"},
            {"identity": None},
            {"compute_micros": 1},
        ):
            with self.subTest(change), self.assertRaises(Refused):
                claims = replace(self.job.claims, **change)
                self.sealed(replace(self.job, claims=claims))

    def test_another_encoding_of_the_same_claims_is_refused(self) -> None:
        payload = self.job.claims.encode(self.job.body)
        signature = golden.SESSION_KEY.sign(frames.decode(golden.frame(Kind.JOB)).message())
        # The number 1 in two bytes instead of one, under a signature that is right.
        longer = payload.replace(b"\x03\x01\x04", b"\x03\x18\x01\x04", 1)
        for claims, good in ((payload, True), (longer, False)):
            header = cbor.encode([frames.KEY_HEADER, {}, claims, signature])
            data = b"MOAI\x01\x03" + len(header).to_bytes(2) + header + self.job.body
            if good:
                verify(frames.decode(data))
            else:
                self.assertEqual(self.code(data), "malformed_frame")

    def test_the_topic_has_to_say_the_same(self) -> None:
        claims = self.job.claims
        assert claims.identity and claims.session
        key = SessionKey(claims.identity, claims.session)
        self.job.check_topic(UpTopic(key, "job", "w"))
        other = "018f4d2a-7c00-7abc-8def-0123456789ac"
        for topic in (
            UpTopic(key, "delete", "w"),
            UpTopic(SessionKey("acme.robot-2", key.session), "job", "w"),
            UpTopic(SessionKey(key.identity, other), "job", "w"),
        ):
            with self.assertRaises(Refused) as caught:
                self.job.check_topic(topic)
            self.assertEqual(caught.exception.code, "identity_mismatch")
