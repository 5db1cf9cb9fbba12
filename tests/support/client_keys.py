"""Certificates of OAuth clients, self-signed, with their private keys."""

import base64
import functools
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

BEGINS_S, ENDS_S = 1_600_000_000, 4_000_000_000


@dataclass(frozen=True)
class ClientCertificate:
    """A certificate and its private key."""

    private: Any
    certificate: x509.Certificate

    @property
    def pem(self) -> str:
        """The certificate."""
        return self.certificate.public_bytes(Encoding.PEM).decode()

    @property
    def key_pem(self) -> str:
        """The private key."""
        return self.private.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        ).decode()


@functools.cache
def certificate(
    kind: str = "rsa", *, begins_s: int = BEGINS_S, ends_s: int = ENDS_S
) -> ClientCertificate:
    """A certificate of an RSA key, or of one of P-256 ("ec")."""
    is_ec = kind == "ec"
    private = (
        ec.generate_private_key(ec.SECP256R1()) if is_ec else rsa.generate_private_key(65537, 2048)
    )
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "client")])
    builder = x509.CertificateBuilder(
        name,
        name,
        private.public_key(),
        x509.random_serial_number(),
        datetime.fromtimestamp(begins_s, UTC),
        datetime.fromtimestamp(ends_s, UTC),
    )
    return ClientCertificate(private, builder.sign(private, hashes.SHA256()))


def base64url(octets: bytes) -> str:
    """Without padding."""
    return base64.urlsafe_b64encode(octets).decode().rstrip("=")
