"""DANE: whether the certificates that a host shows match its TLSA records (RFC 7671, RFC 7672).

Usage 3 is the certificate of the host: its names and dates do not count. Usage 2 is an authority.
Its certificate is among those that the host shows, or in the record; it must have signed the host's
certificate, whose names and dates count by the machine's clock. Which records can be used:
`relay/transport/routing/resolver.py`.
"""

import hashlib
from collections.abc import Iterable, Sequence
from datetime import UTC

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    Policy,
    PolicyBuilder,
    Store,
    VerificationError,
)
from msgspec import Struct

from relay.base.message.tls_policy import TlsaRecord
from relay.delivery.smtp.tls import certificate_matches, certificate_names

_CERTIFICATES_MAX = 8  # of the host and its issuers
_MALFORMED = (
    ValueError,
    TypeError,
    LookupError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)


class DaneMismatch(Struct, frozen=True):
    """Why the certificates of a host match no record; `result` is a result type of RFC 8460 4.3."""

    text: str
    result: str


def dane_mismatch(
    records: Sequence[TlsaRecord], chain: Sequence[bytes], names: Sequence[str]
) -> DaneMismatch | None:
    """Return why none of the certificates in `chain` (DER, the host's first) match the usable
    records; None if they do. A record of usage 2 needs one of `names` in the host's certificate.
    """
    if not chain:
        return DaneMismatch("the host shows no certificate", "validation-failure")
    if any(record.usage == 3 and _selects(record, chain[0]) for record in records):
        return None
    authorities = [record for record in records if record.usage == 2]
    try:
        certificates = [x509.load_der_x509_certificate(der) for der in chain[:_CERTIFICATES_MAX]]
        path = _path_of(certificates)
        anchors = _anchors(authorities, certificates[1:], path[-1])
        if anchors:
            return _mismatch_of_path(path, anchors, names)
    except _MALFORMED as error:
        return DaneMismatch(f"a certificate cannot be read: {error}", "validation-failure")
    key = _key_of(chain[0])
    actual = f"3 {int(key != b'')} 1 {hashlib.sha256(key or chain[0]).hexdigest()}"
    text = f"the certificate matches none of {len(records)} TLSA records: it is {actual}"
    return DaneMismatch(text, "validation-failure")


def _selects(record: TlsaRecord, certificate: bytes) -> bool:
    selected = _key_of(certificate) if record.selector else certificate
    if not selected:
        return False
    if record.matching:
        selected = (hashlib.sha256, hashlib.sha512)[record.matching - 1](selected).digest()
    return selected == record.data


def _key_of(certificate: bytes) -> bytes:
    """Return the SubjectPublicKeyInfo, b"" if it is of an unknown kind."""
    try:
        key = x509.load_der_x509_certificate(certificate).public_key()
        return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except _MALFORMED:
        return b""


def _path_of(certificates: Sequence[x509.Certificate]) -> list[x509.Certificate]:
    """Return the certificate of the host, then its issuers in their order.

    Each name has one certificate, so that there is one path to search; otherwise there would be
    exponentially many.
    """
    path, left = certificates[:1], {issuer.subject: issuer for issuer in reversed(certificates[1:])}
    while (issuer := left.pop(path[-1].issuer, None)) is not None:
        path = [*path, issuer]
    return list(path)


def _anchors(
    records: Sequence[TlsaRecord], issuers: Sequence[x509.Certificate], last: x509.Certificate
) -> list[x509.Certificate]:
    """Return what the records of usage 2 trust. A record with only a key may mean the key that
    signed `last`.
    """
    der = [(issuer, issuer.public_bytes(Encoding.DER)) for issuer in issuers]
    anchors = [issuer for issuer, text in der if any(_selects(record, text) for record in records)]
    for record in records:
        if (record.selector, record.matching) == (0, 0):
            anchors.append(x509.load_der_x509_certificate(record.data))
        elif (record.selector, record.matching) == (1, 0):
            key = load_der_public_key(record.data)
            anchors.append(_anchor(last.issuer, key, dates=last))
    return [_with_constraints(anchor) for anchor in anchors]


def _with_constraints(issuer: x509.Certificate) -> x509.Certificate:
    """Add the basicConstraints that a private authority may have left out."""
    extensions = tuple(issuer.extensions)
    if any(isinstance(extension.value, x509.BasicConstraints) for extension in extensions):
        return issuer
    return _anchor(issuer.subject, issuer.public_key(), dates=issuer, extensions=extensions)


def _anchor(
    name: x509.Name,
    key: PublicKeyTypes,
    *,
    dates: x509.Certificate,
    extensions: Iterable[x509.Extension[x509.ExtensionType]] = (),
) -> x509.Certificate:
    """Return a certificate for the key of an authority. The signature of an anchor is not checked.

    Raises TypeError for a key that cannot sign.
    """
    builder = (
        x509.CertificateBuilder(name, name, serial_number=1)
        .public_key(key)  # type: ignore[arg-type]  # of any kind
        .not_valid_before(dates.not_valid_before_utc)
        .not_valid_after(dates.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    )
    for extension in extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    return builder.sign(Ed25519PrivateKey.generate(), None)


def _mismatch_of_path(
    path: Sequence[x509.Certificate], anchors: list[x509.Certificate], names: Sequence[str]
) -> DaneMismatch | None:
    policy = PolicyBuilder().extension_policies(ca_policy=_ISSUERS, ee_policy=_ANYTHING)
    verifier = policy.store(Store(anchors)).build_client_verifier()
    try:
        verifier.verify(path[0], list(path[1:]))
    except VerificationError as error:
        now = verifier.policy.validation_time.replace(tzinfo=UTC)
        if any(certificate.not_valid_after_utc < now for certificate in (*path, *anchors)):
            return DaneMismatch("a certificate has expired", "certificate-expired")
        why = str(error).partition(" (encountered")[0].removeprefix("validation failed: ")
        text = f"the authority of the TLSA records did not issue the certificate: {why[:200]}"
        return DaneMismatch(text, "certificate-not-trusted")
    certificate = {
        "subjectAltName": [
            ("DNS", name)
            for extension in path[0].extensions
            if isinstance(extension.value, x509.SubjectAlternativeName)
            for name in extension.value.get_values_for_type(x509.DNSName)
        ]
    }
    if any(certificate_matches(certificate, name) for name in names):
        return None
    text = f"the certificate is for {certificate_names(certificate)}, not {' or '.join(names)}"
    return DaneMismatch(text, "certificate-host-mismatch")


def _may_sign(_policy: Policy, _issuer: x509.Certificate, usage: x509.KeyUsage | None) -> None:
    if usage is not None and not usage.key_cert_sign:
        raise ValueError("the keyUsage of an issuer lacks keyCertSign")


_ANYTHING = ExtensionPolicy.permit_all()
_ISSUERS = _ANYTHING.require_present(
    x509.BasicConstraints, Criticality.AGNOSTIC, None
).may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _may_sign)
