"""Certificates of the simulated hosts, by a certificate authority that only one internet has.

A route with `tls = "verify"` and its `ca` trusts them, and so does mail under an MTA-STS policy.
The bad certificate is for another name and has expired. Keys are P-256. See RFC 5280.
"""

import hashlib
import ssl
from collections import OrderedDict
from datetime import UTC, datetime
from pathlib import Path
from tempfile import NamedTemporaryFile

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import NameOID

from relay.base.certificates import load_pair
from relay.development.internet.scenario import HostCertificate

_KEPT = 256
_COMMON_NAME_MAX = 64  # RFC 5280 A.1
_CA_NAME = "Simulated internet of relay dev"
_OTHER_NAME = "wrong-name.invalid"
# whatever time the clock has been advanced to
_FIRST, _LAST = datetime(2000, 1, 1, tzinfo=UTC), datetime(2099, 12, 31, tzinfo=UTC)
_EXPIRED = datetime(2001, 1, 1, tzinfo=UTC)
_SIGNS_CERTIFICATES = x509.KeyUsage(
    digital_signature=False, content_commitment=False, key_encipherment=False,
    data_encipherment=False, key_agreement=False, key_cert_sign=True, crl_sign=False,
    encipher_only=False, decipher_only=False,
)  # fmt: skip


class HostCertificates:
    """The authority and what it has issued. `authority` is its certificate, in PEM."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._host_key = ec.generate_private_key(ec.SECP256R1())
        issued = (
            self._builder(_CA_NAME, self._key, end=_LAST)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_SIGNS_CERTIFICATES, critical=True)
            .sign(self._key, SHA256())
        )
        self.authority = issued.public_bytes(Encoding.PEM).decode()
        public = self._host_key.public_key()
        octets = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self.tlsa = f"3 1 1 {hashlib.sha256(octets).hexdigest()}"  # of all hosts
        self.bad = self._issue(_OTHER_NAME, end=_EXPIRED)
        self._contexts: OrderedDict[tuple[str, HostCertificate], ssl.SSLContext] = OrderedDict()

    def for_host(self, name: str, which: HostCertificate = "good") -> ssl.SSLContext:
        """Return the context of a server with this name."""
        if (name, which) not in self._contexts:
            shown = _OTHER_NAME if which == "other-name" else name
            end = _EXPIRED if which == "expired" else _LAST
            self._contexts[name, which] = self._issue(shown, end=end)
            if len(self._contexts) > _KEPT:
                self._contexts.popitem(last=False)
        return self._contexts[name, which]

    def for_names(self, prefix: str) -> ssl.SSLContext:
        """Return the context of a server with all names that begin with `prefix`."""

        def choose(session: ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> None:
            if name is not None and name.startswith(prefix):
                session.context = self.for_host(name)

        context = self._issue(_OTHER_NAME, end=_LAST)
        context.sni_callback = choose
        return context

    def _issue(self, name: str, *, end: datetime) -> ssl.SSLContext:
        issued = (
            self._builder(name, self._host_key, end=end)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .sign(self._key, SHA256())
        )
        key = self._host_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        with NamedTemporaryFile() as file:  # OpenSSL reads a pair from files only
            file.write(issued.public_bytes(Encoding.PEM) + key)
            file.flush()
            return load_pair(Path(file.name), Path(file.name))

    def _builder(
        self, name: str, key: ec.EllipticCurvePrivateKey, *, end: datetime
    ) -> x509.CertificateBuilder:
        """Begin a certificate with what Python demands of one from 3.13 on (VERIFY_X509_STRICT)."""
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(_name(_CA_NAME))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(_FIRST)
            .not_valid_after(end)
            .add_extension(issuer, critical=False)
            .add_extension(own, critical=False)
        )


def _name(text: str) -> x509.Name:
    shown = text[:_COMMON_NAME_MAX]
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, shown)])
