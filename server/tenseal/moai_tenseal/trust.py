"""Whom the server believes, and how it is believed: keys and certificates.

Invariants:
- a signature is good for one message and one key: Ed25519 keys of small order and points
  that are not reduced are refused;
- an identity only comes from a certificate that an authority of ours vouches for at the
  given time, whose key is on P-256, whose purpose is clientAuth and whose one common name
  is a robot's;
- time is the caller's: nothing here reads a clock.
"""

import datetime
from collections.abc import Callable
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from . import names
from .refusals import Refused

MAX_KEY_FILE_LEN = 16 * 1024
MAX_AUTHORITY_FILE_LEN = 1 << 20

_PRIME = 2**255 - 19
_D = -121665 * pow(121666, -1, _PRIME) % _PRIME


class KeyFileError(Exception):
    """A key or certificate file that cannot be used; the message says what to do."""


class SigningKey:
    """The key that signs all the server says."""

    def __init__(self, key: ed25519.Ed25519PrivateKey) -> None:
        self._key = key

    @classmethod
    def read(cls, path: Path) -> "SigningKey":
        """Read the PEM file that `moai-server key generate` makes."""
        try:
            if path.stat().st_mode & 0o007:
                raise KeyFileError(f"everybody may read the signing key {path}: chmod 600 it")
            with path.open("rb") as file:
                data = file.read(MAX_KEY_FILE_LEN)
        except OSError as error:
            raise KeyFileError(f"cannot use the signing key {path}: {error}") from error
        try:
            key = serialization.load_pem_private_key(data, None)
        except (ValueError, TypeError) as error:
            key = None
            reason: object = error
        else:
            reason = "another kind of key"
        if not isinstance(key, ed25519.Ed25519PrivateKey):
            raise KeyFileError(
                f"the signing key {path} is not an Ed25519 private key in PEM ({reason}); "
                "`moai-server key generate` makes one"
            )
        return cls(key)

    def sign(self, message: bytes) -> bytes:
        """Return the signature of a message."""
        return self._key.sign(message)


def is_small_order(point: bytes) -> bool:
    """Tell whether 32 bytes are a point of Ed25519 whose order divides 8.

    Their y is 0, ±1, or a root of the 8-torsion: then 2·P has y = 0, that is y² = -x², and with
    the curve's equation d·y⁴ + 2·y² - 1 = 0.
    """
    y = int.from_bytes(point, "little") & ((1 << 255) - 1)
    square = y * y % _PRIME
    return y % _PRIME in (0, 1, _PRIME - 1) or (_D * square * square + 2 * square - 1) % _PRIME == 0


def session_verifier(public_key: bytes) -> Callable[[bytes, bytes], bool]:
    """Return what verifies a session's signatures; ValueError if the bytes are no key."""
    y = int.from_bytes(public_key, "little") & ((1 << 255) - 1)
    if len(public_key) != 32 or y >= _PRIME or is_small_order(public_key):
        raise ValueError("not an Ed25519 public key")
    key = ed25519.Ed25519PublicKey.from_public_bytes(public_key)

    def verifies(message: bytes, signature: bytes) -> bool:
        try:
            key.verify(signature, message)
        except InvalidSignature:
            return False
        return True

    return verifies


class Robots:
    """The authorities that say who is a robot."""

    # What path validation understands; any other critical extension refuses a certificate.
    _UNDERSTOOD = frozenset(
        {
            x509.BasicConstraints.oid,
            x509.KeyUsage.oid,
            x509.ExtendedKeyUsage.oid,
            x509.SubjectAlternativeName.oid,
            x509.NameConstraints.oid,
        }
    )

    def __init__(self, authorities: list[x509.Certificate]) -> None:
        def signs_certificates(
            _policy: verification.Policy, _certificate: x509.Certificate, usage: x509.KeyUsage | None
        ) -> None:
            if usage is not None and not usage.key_cert_sign:
                raise ValueError("the authority's key is not for certificates")

        agnostic = verification.Criticality.AGNOSTIC
        self._store = verification.Store(authorities)
        self._authority_policy = (
            verification.ExtensionPolicy.permit_all()
            .require_present(x509.BasicConstraints, agnostic, None)
            .may_be_present(x509.KeyUsage, agnostic, signs_certificates)
        )

    @classmethod
    def read(cls, path: Path) -> "Robots":
        """Trust the authorities in a PEM file."""
        try:
            with path.open("rb") as file:
                data = file.read(MAX_AUTHORITY_FILE_LEN)
            return cls(x509.load_pem_x509_certificates(data))
        except (OSError, ValueError) as error:
            raise KeyFileError(f"cannot use the authorities in {path}: {error}") from error

    def identify(
        self, chain: tuple[bytes, ...], message: bytes, signature: bytes, now: int
    ) -> str:
        """Return the identity of the robot that signed, or refuse."""
        leaf = self._vouched_for(chain, now)
        try:
            key = leaf.public_key()
        except (ValueError, UnsupportedAlgorithm) as error:
            raise _untrusted("its key cannot be read") from error
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(
            key.curve, ec.SECP256R1
        ):
            raise _untrusted("its key is not an ECDSA key on the curve P-256")
        r, s = int.from_bytes(signature[:32]), int.from_bytes(signature[32:])
        try:
            key.verify(encode_dss_signature(r, s), message, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature as error:
            raise Refused(
                "bad_signature", "the frame's signature is not by the key of its certificate"
            ) from error
        return _common_name(leaf)

    def _vouched_for(self, chain: tuple[bytes, ...], now: int) -> x509.Certificate:
        try:
            leaf, *others = (x509.load_der_x509_certificate(data) for data in chain)
            extensions = [list(certificate.extensions) for certificate in (leaf, *others)]
            purposes = [
                purpose
                for extension in extensions[0]
                if isinstance(extension.value, x509.ExtendedKeyUsage)
                for purpose in extension.value
            ]
        except Exception as error:  # noqa: BLE001 - a parser's errors are many, and all mean this
            raise _untrusted("it cannot be read") from error
        for extension in sum(extensions, []):
            if extension.critical and extension.oid not in self._UNDERSTOOD:
                oid = extension.oid.dotted_string
                raise _untrusted(f"it has the unknown critical extension {oid}")
        verifier = (
            verification.PolicyBuilder()
            .store(self._store)
            .time(datetime.datetime.fromtimestamp(now, datetime.timezone.utc))
            .extension_policies(
                ca_policy=self._authority_policy,
                ee_policy=verification.ExtensionPolicy.permit_all(),
            )
            .build_client_verifier()
        )
        try:
            verifier.verify(leaf, others)
        except (verification.VerificationError, ValueError) as error:
            raise _untrusted(
                "it is expired, or from no authority that is trusted for robots"
            ) from error
        if ExtendedKeyUsageOID.CLIENT_AUTH not in purposes:
            raise _untrusted("it is not for TLS clients: it lacks clientAuth")
        return leaf


def _untrusted(why: str) -> Refused:
    return Refused("untrusted_certificate", f"the robot's certificate is refused: {why}")


def _common_name(leaf: x509.Certificate) -> str:
    found = leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    name = found[0].value if len(found) == 1 else ""
    if not isinstance(name, str) or not names.is_identity(name):
        raise _untrusted("its common name is no robot's")
    return name
