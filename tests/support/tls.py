"""Certificates for the tests' servers: a self-signed one, and those of a CA.

They pass the strict verification that Python 3.13 has by default: key usage and key identifiers are
in each. The self-signed one is good for mx.remote.test and localhost, one day. See RFC 5280.
"""

import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

_DAY = timedelta(days=1)
_USES = (
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


@dataclass(frozen=True)
class Certificate:
    """PEM files of a certificate and its key."""

    certificate: Path
    key: Path

    def server_context(self) -> ssl.SSLContext:
        """A context that shows the certificate to clients."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        return context


@dataclass(frozen=True)
class Authority:
    """A CA; its files and those of what it issues are in `directory`."""

    directory: Path

    @property
    def certificate(self) -> Path:
        """The CA's own certificate, PEM: what a client trusts."""
        return self.directory / "ca.pem"

    @property
    def key(self) -> Path:
        """The key that signs, PEM."""
        return self.directory / "ca.key"

    def issue(self, *names: str, days: int = 1, since: int = -2) -> Certificate:
        """Make a certificate for `names`, as "DNS:a.test" or "IP:127.0.0.2".

        It is valid from `since` days from now on, for `days` days from now: with -1 it has expired.
        """
        stem = "-".join([*names, str(days), str(since)]).replace(":", "_").replace("*", "any")
        if len(stem) > 200:  # of a file's name
            stem = sha256(stem.encode()).hexdigest()
        stem = str(self.directory / stem)
        made = Certificate(Path(f"{stem}.pem"), Path(f"{stem}.key"))
        by = (
            x509.load_pem_x509_certificate(self.certificate.read_bytes()),
            load_pem_private_key(self.key.read_bytes(), None),
        )
        _make(made, "x", names, days=days, since=since, by=by)
        return made


def self_signed(directory: Path, *names: str) -> Certificate:
    """Make a certificate for `names`, as "DNS:localhost", that is its own issuer."""
    made = Certificate(directory / "certificate.pem", directory / "key.pem")
    _make(made, names[0].removeprefix("DNS:"), names, days=2)
    return made


def new_authority(directory: Path) -> Authority:
    """Make a CA."""
    made = Authority(directory)
    _make(Certificate(made.certificate, made.key), "the tests' CA", (), days=2)
    return made


def _make(
    made: Certificate,
    subject: str,
    names: Iterable[str],
    *,
    days: int,
    since: int = -2,
    by: tuple[x509.Certificate, Any] | None = None,
) -> None:
    """Write a new key and its certificate, signed by an issuer or by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)])
    issuer = key.public_key() if by is None else by[0].public_key()
    uses = dict.fromkeys(_USES, False) | {"digital_signature": True, "key_cert_sign": by is None}
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder(
            by[0].subject if by else name,
            name,
            key.public_key(),
            x509.random_serial_number(),
            now + since * _DAY,
            now + days * _DAY,
        )
        .add_extension(x509.BasicConstraints(ca=by is None, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**uses), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer), critical=False)
    )
    if san := [_general_name(text) for text in names]:
        builder = builder.add_extension(x509.SubjectAlternativeName(san), critical=False)
    signed = builder.sign(by[1] if by else key, SHA256())
    made.certificate.write_bytes(signed.public_bytes(Encoding.PEM))
    made.key.touch(mode=0o600)
    made.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def _general_name(text: str) -> x509.GeneralName:
    kind, _, value = text.partition(":")
    return x509.IPAddress(ip_address(value)) if kind == "IP" else x509.DNSName(value)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """A self-signed certificate."""
    return self_signed(tmp_path_factory.mktemp("tls"), "DNS:mx.remote.test", "DNS:localhost")


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A CA of the tests' own."""
    return new_authority(tmp_path_factory.mktemp("ca"))
