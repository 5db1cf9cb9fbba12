"""Issue certificates: those of the development authority and of the simulated hosts.

Keys are P-256. A certificate has what Python requires since 3.13 (VERIFY_X509_STRICT). See
RFC 5280.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta
from ipaddress import ip_address, ip_network

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from msgspec import Struct

from relay.base.settings.values import is_ip

_BACKDATED = timedelta(days=1)  # clocks of containers and virtual machines differ
ANY_ADDRESS = (x509.IPAddress(ip_network("0.0.0.0/0")), x509.IPAddress(ip_network("::/0")))


class Issuer(Struct, frozen=True):
    """The certificate of an authority, and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def sign(
        self, key: ec.EllipticCurvePublicKey, names: Iterable[str], *, now: datetime, end: datetime
    ) -> bytes:
        """Return a certificate for a server with these names (PEM)."""
        own = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        certificate = (
            _builder(key, "Relay development", now=now, end=end)
            .issuer_name(self.certificate.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(own, critical=False)
            .add_extension(x509.SubjectAlternativeName(map(general_name, names)), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return certificate.public_bytes(Encoding.PEM)


def self_signed(
    key: ec.EllipticCurvePrivateKey,
    name: str,
    constraints: x509.NameConstraints,
    *,
    now: datetime,
    end: datetime,
) -> x509.Certificate:
    """Return the certificate of an authority."""
    return (
        _builder(key.public_key(), name, now=now, end=end)
        .issuer_name(_name(name))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(constraints, critical=True)
        .sign(key, hashes.SHA256())
    )


def _builder(
    key: ec.EllipticCurvePublicKey, name: str, *, now: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(end)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def general_name(host: str, *, is_constraint: bool = False) -> x509.GeneralName:
    """Return a host name or an address, with or without brackets, as a general name.

    With `is_constraint`, return the name constraint that allows it.
    """
    bare = host.strip("[]")
    if not is_ip(bare):
        return x509.DNSName(host)
    return x509.IPAddress(ip_network(bare) if is_constraint else ip_address(bare))


def pem_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a key, not encrypted (PEM)."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
