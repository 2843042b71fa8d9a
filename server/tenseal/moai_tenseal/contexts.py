"""CKKS contexts: parameters, the evaluation keys that belong to them, and their id.

Invariants:
- a Context has at least 128 bits of security and stays within the protocol's limits;
- equal contexts have equal canonical bytes, different contexts have different ones;
- how long keys and ciphertexts can be follows from the context alone.
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256

# Homomorphic Encryption Standard (2018), table 1: bits of all primes together for 128 bits of
# security against classical attacks, ternary secret.
MAX_MODULUS_BITS = {4096: 109, 8192: 218, 16384: 438}
MAX_KEY_LEN = 1536 * 122880
# Headers, ids, lengths and seeds of one SEAL object, with room.
OBJECT_OVERHEAD = 512


@dataclass(frozen=True)
class Context:
    """One set of parameters, and which evaluation keys a session has."""

    poly_modulus_degree: int
    coeff_mod_bit_sizes: tuple[int, ...]
    global_scale: float
    public_key: bool
    relinearisation_keys: bool
    rotations: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse what is outside the limits with a ValueError that names the field."""
        degree, sizes = self.poly_modulus_degree, self.coeff_mod_bit_sizes
        steps = self.rotations
        conditions = (
            (degree in MAX_MODULUS_BITS, "poly_modulus_degree must be 4096, 8192 or 16384"),
            (3 <= len(sizes) <= 16, "coeff_mod_bit_sizes must be 3 to 16"),
            (all(20 <= bits <= 60 for bits in sizes), "each of coeff_mod_bit_sizes is 20 to 60"),
            (
                sum(sizes) <= MAX_MODULUS_BITS.get(degree, 0),
                "coeff_mod_bit_sizes leave less than 128 bits of security",
            ),
            (
                math.isfinite(self.global_scale) and self.global_scale > 1,
                "global_scale must be finite and above 1",
            ),
            (1 <= len(steps) <= 64, "rotations must be 1 to 64"),
            (list(steps) == sorted(set(steps)), "rotations must be strictly ascending"),
            (
                all(0 < abs(step) < degree // 2 for step in steps),
                "rotations must be other than 0 and below half the degree",
            ),
        )
        for holds, problem in conditions:
            if not holds:
                raise ValueError(problem)
        if self.max_key_len > MAX_KEY_LEN:
            raise ValueError("its evaluation keys do not fit a manifest")

    @classmethod
    def from_fields(cls, fields: Mapping[str, object]) -> "Context":
        """Return the context in the `parameters` of a model; ValueError if there is none."""
        expected = {
            "poly_modulus_degree": int,
            "coeff_mod_bit_sizes": list,
            "global_scale": float,
            "public_key": bool,
            "relinearisation_keys": bool,
            "rotations": list,
        }
        if fields.keys() != expected.keys():
            raise ValueError(f"parameters must be {', '.join(expected)}")
        for name, kind in expected.items():
            value = fields[name]
            entries = value if isinstance(value, list) else []
            if type(value) is not kind or any(type(entry) is not int for entry in entries):
                raise ValueError(f"parameters.{name} has another type")
        sizes, steps = fields["coeff_mod_bit_sizes"], fields["rotations"]
        degree, scale = fields["poly_modulus_degree"], fields["global_scale"]
        assert isinstance(degree, int) and isinstance(scale, float)
        assert isinstance(sizes, list) and isinstance(steps, list)
        return cls(
            poly_modulus_degree=degree,
            coeff_mod_bit_sizes=tuple(sizes),
            global_scale=scale,
            public_key=bool(fields["public_key"]),
            relinearisation_keys=bool(fields["relinearisation_keys"]),
            rotations=tuple(steps),
        )

    def fields(self) -> dict[str, int | float | bool | list[int]]:
        """Return `parameters` as a card has them."""
        return {
            "poly_modulus_degree": self.poly_modulus_degree,
            "coeff_mod_bit_sizes": list(self.coeff_mod_bit_sizes),
            "global_scale": self.global_scale,
            "public_key": self.public_key,
            "relinearisation_keys": self.relinearisation_keys,
            "rotations": list(self.rotations),
        }

    def canonical(self) -> bytes:
        """Return the bytes that name the context."""
        sizes, steps = self.coeff_mod_bit_sizes, self.rotations
        flags = int(self.public_key) | int(self.relinearisation_keys) << 1
        return b"".join(
            (
                b"moai-fhe",
                struct.pack(">BBI", 1, 2, self.poly_modulus_degree),
                bytes([len(sizes), *sizes]),
                struct.pack(">dBH", self.global_scale, flags, len(steps)),
                struct.pack(f">{len(steps)}h", *steps),
            )
        )

    @cached_property
    def id(self) -> bytes:
        """The SHA-256 of the canonical bytes."""
        return sha256(self.canonical()).digest()

    @property
    def slots(self) -> int:
        """How many values a ciphertext has room for."""
        return self.poly_modulus_degree // 2

    @property
    def data_primes(self) -> int:
        """Primes of a fresh ciphertext: all but the special one."""
        return len(self.coeff_mod_bit_sizes) - 1

    @property
    def galois_elements(self) -> frozenset[int]:
        """The element of each rotation: 3^steps modulo 2N, steps modulo N / 2."""
        modulus = 2 * self.poly_modulus_degree
        return frozenset(pow(3, step % self.slots, modulus) for step in self.rotations)

    def ciphertext_len(self, primes: int) -> int:
        """Return the most bytes of a ciphertext of two polynomials, uncompressed."""
        return 2 * 8 * primes * self.poly_modulus_degree + OBJECT_OVERHEAD

    @property
    def max_key_len(self) -> int:
        """The most bytes of a session's evaluation keys: unseeded and uncompressed."""
        primes = len(self.coeff_mod_bit_sizes)
        switching = len(self.rotations) + int(self.relinearisation_keys)
        ciphertexts = switching * (primes - 1) + int(self.public_key)
        # The list of Galois keys has a length for each element there could be.
        lengths = 8 * self.poly_modulus_degree
        return ciphertexts * self.ciphertext_len(primes) + lengths + 4 * OBJECT_OVERHEAD
