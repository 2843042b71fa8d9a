"""The protobuf messages that TenSEAL puts around SEAL's objects.

Looked at before TenSEAL sees them: it would load whatever is there, a secret key among it.

Invariants:
- a message has exactly the fields that the protocol names, in ascending order;
- objects within are only cut out, never looked into beyond SEAL's header.
"""

import struct
from dataclasses import dataclass

from .contexts import Context

SEAL_MAGIC = 0xA15E
SEAL_HEADER_LEN = 16

Value = int | float | bytes


class WireError(ValueError):
    """The bytes are not the message they should be."""


def fields(data: bytes) -> list[tuple[int, Value]]:
    """Return the fields of a message in their order."""
    found: list[tuple[int, Value]] = []
    offset = 0
    while offset < len(data):
        tag, offset = _varint(data, offset)
        number, form = tag >> 3, tag & 7
        value: Value
        if form == 0:
            value, offset = _varint(data, offset)
        elif form == 1:
            if offset + 8 > len(data):
                raise WireError("it ends within a field")
            value, offset = struct.unpack_from("<d", data, offset)[0], offset + 8
        elif form == 2:
            length, offset = _varint(data, offset)
            if offset + length > len(data):
                raise WireError("it ends within a field")
            value, offset = data[offset : offset + length], offset + length
        else:
            raise WireError("a field of a form that is not used")
        if found and number < found[-1][0]:
            raise WireError("its fields are not in ascending order")
        found.append((number, value))
    return found


def _varint(data: bytes, offset: int) -> tuple[int, int]:
    value = 0
    for index in range(10):
        if offset + index >= len(data):
            break
        byte = data[offset + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, offset + index + 1
    raise WireError("a number has no end")


def varint(value: int) -> bytes:
    """Return a number's bytes."""
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def field(number: int, value: Value) -> bytes:
    """Return a field's bytes."""
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 1) + struct.pack("<d", value)
    return varint(number << 3) + varint(value)


def _check_object(data: Value, what: str) -> bytes:
    """Refuse what does not begin with a SEAL header that has the length there is."""
    if not isinstance(data, bytes) or len(data) < SEAL_HEADER_LEN:
        raise WireError(f"{what} is no object of SEAL")
    magic, length, _, _, mode, _, size = struct.unpack_from("<HBBBBHQ", data)
    if (magic, length, size) != (SEAL_MAGIC, SEAL_HEADER_LEN, len(data)) or mode > 2:
        raise WireError(f"{what} has no header of SEAL, or one of another length")
    return data


def _scale(value: Value, context: Context) -> None:
    if value != context.global_scale:
        raise WireError("the scale is not that of the context")


def check_keys(data: bytes, context: Context) -> None:
    """Refuse a TenSEALContextProto that is not of public keys of this context."""
    outer = fields(data)
    if any(number == 3 for number, _ in outer):
        raise WireError("they hold a secret key, which nobody but the robot may have")
    symmetric = [] if context.public_key else [(4, 1)]
    rest = [entry for entry in outer[2:] if entry != (4, 0)]
    if [number for number, _ in outer[:2]] != [1, 2] or rest != symmetric:
        raise WireError("they have other fields than parameters, keys and encryption type")
    _check_object(outer[0][1], "EncryptionParameters")
    public = outer[1][1]
    if not isinstance(public, bytes):
        raise WireError("their keys are no message")
    inner = fields(public)
    names = {1: "PublicKey", 4: "RelinKeys", 5: "GaloisKeys"}
    expected = [2, 3, 5]
    expected += [1] if context.public_key else []
    expected += [4] if context.relinearisation_keys else []
    if [number for number, _ in inner] != sorted(expected):
        raise WireError("their keys are not those that the context has")
    for number, value in inner:
        if number in names:
            _check_object(value, names[number])
    values = dict(inner)
    if values[2] != 7:
        raise WireError("automatic relinearisation, rescaling and switching must be on")
    _scale(values[3], context)


@dataclass(frozen=True)
class Vector:
    """A CKKSVectorProto."""

    size: int
    ciphertexts: tuple[bytes, ...]
    scale: float

    def encode(self) -> bytes:
        """Return the message's bytes."""
        parts = [field(1, varint(self.size))]
        parts += [field(2, ciphertext) for ciphertext in self.ciphertexts]
        return b"".join(parts) + field(3, self.scale)

    @classmethod
    def decode(cls, data: bytes) -> "Vector":
        """Return the vector in the bytes."""
        first, *ciphertexts, last = fields(data) or [(0, 0), (0, 0)]
        if first[0] != 1 or last[0] != 3 or any(number != 2 for number, _ in ciphertexts):
            raise WireError("its fields are not those of a vector")
        sizes, scale = first[1], last[1]
        if not isinstance(sizes, bytes) or not isinstance(scale, float):
            raise WireError("its fields are not those of a vector")
        size, end = _varint(sizes, 0)
        if end != len(sizes):
            raise WireError("a vector has one size")
        objects = tuple(_check_object(value, "a ciphertext") for _, value in ciphertexts)
        return cls(size, objects, scale)


def check_input(data: bytes, context: Context, block: int, windows: int) -> Vector:
    """Return the input in a job's body, or refuse it."""
    longest = context.ciphertext_len(context.data_primes)
    if len(data) > longest:
        raise WireError(f"it has {len(data)} bytes, and no input has more than {longest}")
    vector = Vector.decode(data)
    if len(vector.ciphertexts) != 1:
        raise WireError("an input has one ciphertext")
    if vector.size % block or not 1 <= vector.size // block <= windows:
        raise WireError(f"it has {vector.size} values, not 1 to {windows} windows of {block}")
    _scale(vector.scale, context)
    return vector
