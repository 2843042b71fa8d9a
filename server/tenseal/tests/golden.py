"""The project's golden frames and the throw-away keys they are made with."""

from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from moai_tenseal.frames import Kind
from moai_tenseal.trust import Robots

ROOT = Path(__file__).parents[3]
DIRECTORY = ROOT / "transport" / "tests" / "golden"
NOW = 1_799_999_940
IDENTITY_KEY = ec.derive_private_key(int.from_bytes(bytes([0x1D]) * 32), ec.SECP256R1())
SESSION_KEY = ed25519.Ed25519PrivateKey.from_private_bytes(bytes([0x5E]) * 32)
SERVER_KEY = ed25519.Ed25519PrivateKey.from_private_bytes(bytes([0x5A]) * 32)


def frame(kind: Kind) -> bytes:
    """Return the golden frame of a kind."""
    return bytes.fromhex((DIRECTORY / f"{kind.name.lower()}.hex").read_text())


def robots() -> Robots:
    """Trust the authority of the golden robot."""
    return Robots.read(DIRECTORY / "authority.pem")


def sign_as_robot(message: bytes) -> bytes:
    """Sign as the golden open is signed: ES256, deterministic by RFC 6979."""
    scheme = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
    r, s = decode_dss_signature(IDENTITY_KEY.sign(message, scheme))
    return r.to_bytes(32) + s.to_bytes(32)
