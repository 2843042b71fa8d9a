"""CBOR (RFC 8949) as the protocol uses it, and no more.

Invariants:
- what is read is one item of definite length with nothing behind it, nested no deeper
  than MAX_DEPTH, without tags, with no map key twice, and with floats of 64 bits;
- reading takes time and memory in proportion to the bytes given;
- what is written has the shortest lengths; maps keep the order they have.
"""

import struct
from typing import TypeAlias, Union

MAX_DEPTH = 8

Item: TypeAlias = Union[
    int, bytes, str, bool, float, list["Item"], dict[Union[int, str], "Item"], None
]


class CborError(ValueError):
    """The bytes are not the CBOR that was expected."""


def encode(item: Item) -> bytes:
    """Return the bytes of an item."""
    parts: list[bytes] = []
    _write(item, parts)
    return b"".join(parts)


def decode(data: bytes) -> Item:
    """Return the one item in the bytes, or raise CborError."""
    reader = _Reader(data)
    item = reader.item(MAX_DEPTH)
    if reader.offset != len(data):
        raise CborError("bytes after its end")
    return item


def is_canonical(data: bytes, item: Item) -> bool:
    """Tell whether the bytes are the item's core deterministic encoding."""
    return encode(_sorted(item)) == data


def _sorted(item: Item) -> Item:
    if isinstance(item, dict):
        pairs = sorted((encode(key), key) for key in item)
        return {key: _sorted(item[key]) for _, key in pairs}
    if isinstance(item, list):
        return [_sorted(entry) for entry in item]
    return item


def _head(major: int, value: int) -> bytes:
    if value < 24:
        return bytes([major << 5 | value])
    for code, form in ((24, ">B"), (25, ">H"), (26, ">I"), (27, ">Q")):
        if value < 1 << 8 * struct.calcsize(form):
            return bytes([major << 5 | code]) + struct.pack(form, value)
    raise CborError("an integer of more than 64 bits")


def _write(item: Item, parts: list[bytes]) -> None:
    if item is None:
        parts.append(b"\xf6")
    elif isinstance(item, bool):
        parts.append(b"\xf5" if item else b"\xf4")
    elif isinstance(item, int):
        parts.append(_head(0, item) if item >= 0 else _head(1, -1 - item))
    elif isinstance(item, float):
        parts.append(b"\xfb" + struct.pack(">d", item))
    elif isinstance(item, bytes):
        parts += [_head(2, len(item)), item]
    elif isinstance(item, str):
        text = item.encode()
        parts += [_head(3, len(text)), text]
    elif isinstance(item, list):
        parts.append(_head(4, len(item)))
        for entry in item:
            _write(entry, parts)
    elif isinstance(item, dict):
        parts.append(_head(5, len(item)))
        for key, value in item.items():
            _write(key, parts)
            _write(value, parts)
    else:
        raise CborError(f"{type(item).__name__} has no form in CBOR here")


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.offset = 0

    def take(self, count: int) -> bytes:
        end = self.offset + count
        if end > len(self.data):
            raise CborError("the bytes end within an item")
        taken = self.data[self.offset : end]
        self.offset = end
        return taken

    def argument(self, info: int) -> int:
        if info < 24:
            return info
        if info > 27:
            raise CborError("an indefinite length, or a reserved one")
        return int.from_bytes(self.take(1 << (info - 24)))

    def item(self, depth: int) -> Item:
        if depth == 0:
            raise CborError("nested too deeply")
        first = self.take(1)[0]
        major, info = first >> 5, first & 31
        if major == 7:
            return self.simple(info)
        value = self.argument(info)
        match major:
            case 0:
                return value
            case 1:
                return -1 - value
            case 2:
                return self.take(value)
            case 3:
                try:
                    return self.take(value).decode()
                except UnicodeDecodeError as error:
                    raise CborError("a text that is not UTF-8") from error
            case 4:
                return self.array(value, depth - 1)
            case 5:
                return self.map(value, depth - 1)
            case _:
                raise CborError("a tag")

    def simple(self, info: int) -> Item:
        match info:
            case 20:
                return False
            case 21:
                return True
            case 22:
                return None
            case 27:
                return float(struct.unpack(">d", self.take(8))[0])
            case _:
                raise CborError("a simple value that is not used here")

    def array(self, count: int, depth: int) -> list[Item]:
        # Each entry takes a byte at least, so no length makes more work than there are bytes.
        if count > len(self.data) - self.offset:
            raise CborError("the bytes end within an array")
        return [self.item(depth) for _ in range(count)]

    def map(self, count: int, depth: int) -> dict[int | str, Item]:
        if count > len(self.data) - self.offset:
            raise CborError("the bytes end within a map")
        entries: dict[int | str, Item] = {}
        for _ in range(count):
            key = self.item(depth)
            if not isinstance(key, int | str) or isinstance(key, bool):
                raise CborError("a key that is neither integer nor text")
            if key in entries:
                raise CborError("a key that is there twice")
            entries[key] = self.item(depth)
        return entries
