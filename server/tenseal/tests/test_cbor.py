"""CBOR: what is taken, what is not, and that nothing else happens."""

import random
import unittest

from moai_tenseal import cbor


class Cbor(unittest.TestCase):
    def test_items_are_read_as_they_were_written(self) -> None:
        item: cbor.Item = {
            "a": [0, 23, 24, 255, 256, 65536, 1 << 32, (1 << 64) - 1, -1, -25, -(1 << 64)],
            1: {"b": b"\0" * 300, "c": "ü", "d": [True, False, None], "e": 0.1},
        }
        self.assertEqual(cbor.decode(cbor.encode(item)), item)

    def test_what_the_protocol_does_not_use_is_refused(self) -> None:
        for text in (
            "",  # nothing
            "0000",  # something behind it
            "9f00ff",  # indefinite array
            "5f4100ff",  # indefinite bytes
            "c000",  # tag
            "a2000000 00",  # key twice
            "a1400 0",  # bytes as key
            "a1f500",  # boolean as key
            "f97e00",  # float of 16 bits
            "61ff",  # not UTF-8
            "1c",  # reserved length
            "9b7fffffffffffffff",  # more entries than bytes
            "bbffffffffffffffff",
            "5bffffffffffffffff00",
            "81" * 8 + "00",  # too deep
        ):
            with self.subTest(text), self.assertRaises(cbor.CborError):
                cbor.decode(bytes.fromhex(text.replace(" ", "")))

    def test_a_longer_form_is_not_canonical(self) -> None:
        for text, canonical in (("1800", False), ("00", True), ("a202000100", False)):
            data = bytes.fromhex(text)
            self.assertEqual(cbor.is_canonical(data, cbor.decode(data)), canonical, text)

    def test_any_bytes_are_read_or_refused(self) -> None:
        source = random.Random(1)
        for _ in range(20_000):
            data = source.randbytes(source.randrange(24))
            try:
                item = cbor.decode(data)
            except cbor.CborError:
                continue
            self.assertEqual(cbor.encode(cbor.decode(cbor.encode(item))), cbor.encode(item))
