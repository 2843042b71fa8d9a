"""Keys and certificates: who is believed."""

import datetime
import tempfile
import unittest
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from moai_tenseal import trust
from moai_tenseal.refusals import Refused

NOW = 1_800_000_000
DAY = datetime.timedelta(days=1)
TIME = datetime.datetime.fromtimestamp(NOW, datetime.timezone.utc)
KEY_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def named(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def authority_extensions(path_length: int | None = None) -> list[x509.ExtensionType]:
    return [x509.BasicConstraints(ca=True, path_length=path_length)]


def robot_extensions() -> list[x509.ExtensionType]:
    return [x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])]


class Authority:
    def __init__(self, name: str = "authority", issuer: "Authority | None" = None) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = named(name)
        by = issuer or self
        self.certificate = by.issue(self.name, self.key, authority_extensions())

    def issue(
        self,
        subject: x509.Name,
        key: Key,
        extensions: list[x509.ExtensionType],
        begin: datetime.datetime = TIME - DAY,
        end: datetime.datetime = TIME + DAY,
    ) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(end)
        )
        for extension in extensions:
            critical = isinstance(extension, x509.BasicConstraints | x509.UnrecognizedExtension)
            builder = builder.add_extension(extension, critical=critical)
        return builder.sign(self.key, hashes.SHA256())


def der(*certificates: x509.Certificate) -> tuple[bytes, ...]:
    return tuple(
        certificate.public_bytes(serialization.Encoding.DER) for certificate in certificates
    )


class Certificates(unittest.TestCase):
    def setUp(self) -> None:
        self.authority = Authority()
        self.robots = trust.Robots([self.authority.certificate])
        self.key = ec.generate_private_key(ec.SECP256R1())

    def sign(self, message: bytes) -> bytes:
        r, s = decode_dss_signature(self.key.sign(message, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32) + s.to_bytes(32)

    def identify(self, chain: tuple[bytes, ...], message: bytes = b"message") -> str:
        return self.robots.identify(chain, message, self.sign(b"message"), NOW)

    def refused(self, chain: tuple[bytes, ...], message: bytes = b"message") -> str:
        with self.assertRaises(Refused) as caught:
            self.identify(chain, message)
        return caught.exception.code

    def robot(self, issuer: Authority | None = None, **changes: object) -> x509.Certificate:
        fields: dict[str, object] = {
            "subject": named("acme.r1"),
            "key": self.key,
            "extensions": robot_extensions(),
        }
        fields.update(changes)
        return (issuer or self.authority).issue(**fields)  # type: ignore[arg-type]

    def test_a_robot_is_who_its_certificate_says(self) -> None:
        self.assertEqual(self.identify(der(self.robot())), "acme.r1")
        between = Authority("between", self.authority)
        chain = der(self.robot(between), between.certificate)
        self.assertEqual(self.identify(chain), "acme.r1")

    def test_another_message_or_key_is_a_bad_signature(self) -> None:
        self.assertEqual(self.refused(der(self.robot()), b"another"), "bad_signature")
        other = self.robot(key=ec.generate_private_key(ec.SECP256R1()))
        self.assertEqual(self.refused(der(other)), "bad_signature")

    def test_who_is_not_vouched_for_is_no_robot(self) -> None:
        stranger, between = Authority(), Authority("between", self.authority)
        no_authority = self.robot(subject=named("acme.r2"))
        forged = Authority("acme.r2")
        forged.key = self.key
        usage = dict.fromkeys(KEY_USAGES, False) | {"digital_signature": True}
        signs_nothing = Authority("signs nothing")
        signs_nothing.certificate = self.authority.issue(
            signs_nothing.name,
            signs_nothing.key,
            [*authority_extensions(), x509.KeyUsage(**usage)],
        )
        unknown = x509.UnrecognizedExtension(ObjectIdentifier("1.2.3.4"), b"\x05\x00")
        server_auth = [x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])]
        for what, chain in {
            "a foreign authority": der(self.robot(stranger)),
            "of the same name, which is sent along": der(
                self.robot(stranger), stranger.certificate
            ),
            "a missing intermediate": der(self.robot(between)),
            "a robot that plays authority": der(self.robot(forged), no_authority),
            "an authority whose key is not for certificates": der(
                self.robot(signs_nothing), signs_nothing.certificate
            ),
            "expired": der(self.robot(begin=TIME - 2 * DAY, end=TIME - DAY)),
            "not yet valid": der(self.robot(begin=TIME + DAY, end=TIME + 2 * DAY)),
            "for servers": der(self.robot(extensions=server_auth)),
            "for nothing": der(self.robot(extensions=[])),
            "critical and unknown": der(
                self.robot(extensions=[*robot_extensions(), unknown])
            ),
            "no robot's name": der(self.robot(subject=named("server"))),
            "two names": der(
                self.robot(subject=x509.Name([*named("acme.r1"), *named("acme.r2")]))
            ),
            "another curve": der(self.robot(key=ec.generate_private_key(ec.SECP384R1()))),
            "another kind of key": der(
                self.robot(key=rsa.generate_private_key(65537, 2048))
            ),
            "garbage": (b"garbage",),
        }.items():
            with self.subTest(what):
                self.assertEqual(self.refused(chain), "untrusted_certificate")


class Keys(unittest.TestCase):
    def test_points_of_small_order_and_others_that_are_none_are_refused(self) -> None:
        prime = 2**255 - 19
        # RFC 8032's curve has eight such points; the root of order 8 is well known.
        order_8 = int.from_bytes(
            bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
            "little",
        )
        for y in (0, 1, prime - 1, order_8, prime - order_8):
            for sign in (0, 1):
                point = (y | sign << 255).to_bytes(32, "little")
                self.assertTrue(trust.is_small_order(point), y)
                with self.assertRaises(ValueError):
                    trust.session_verifier(point)
        for y in (prime, prime + 1):
            with self.assertRaises(ValueError):
                trust.session_verifier(y.to_bytes(32, "little"))
        for _ in range(20):
            key = ed25519.Ed25519PrivateKey.generate()
            verifies = trust.session_verifier(key.public_key().public_bytes_raw())
            signature = key.sign(b"message")
            self.assertTrue(verifies(b"message", signature))
            self.assertFalse(verifies(b"other", signature))
            order = 2**252 + 27742317777372353535851937790883648493
            s = int.from_bytes(signature[32:], "little") + order
            self.assertFalse(verifies(b"message", signature[:32] + s.to_bytes(32, "little")))

    def test_a_key_that_everybody_may_read_is_refused(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "key"
            key = ed25519.Ed25519PrivateKey.generate()
            form = serialization.PrivateFormat.PKCS8
            plain = serialization.NoEncryption()
            path.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, plain))
            path.chmod(0o600)
            signature = trust.SigningKey.read(path).sign(b"message")
            key.public_key().verify(signature, b"message")
            path.chmod(0o604)
            with self.assertRaisesRegex(trust.KeyFileError, "chmod 600"):
                trust.SigningKey.read(path)
            path.write_text("no key")
            path.chmod(0o600)
            with self.assertRaisesRegex(trust.KeyFileError, "moai-server key generate"):
                trust.SigningKey.read(path)
