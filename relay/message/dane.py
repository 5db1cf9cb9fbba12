"""DANE: which TLSA records of a host count (RFC 7671, RFC 7672). Pure functions.

What a host must show for them: `relay/smtp/dane.py`.
"""

from collections.abc import Iterable

from relay.message.tls_policy import TlsaRecord

RECORDS_MAX = 16  # they are part of the keys of connections; one or two are usual
_DIGEST_BYTES = {1: 32, 2: 64}  # SHA-256 and SHA-512


def usable_records(found: Iterable[TlsaRecord]) -> tuple[TlsaRecord, ...]:
    """Return the records that can be used, RECORDS_MAX at most, in one order for each answer.

    () means that TLS is required, and nothing verified (RFC 7672 2.2). Usages 0 and 1 need a store
    of authorities, and are no part of DANE for SMTP (RFC 7672 3.1.3).
    """
    return tuple(sorted(filter(_is_usable, set(found))))[:RECORDS_MAX]


def _is_usable(record: TlsaRecord) -> bool:
    if record.usage not in (2, 3) or record.selector not in (0, 1):
        return False
    if record.matching:
        return len(record.data) == _DIGEST_BYTES.get(record.matching)
    return _can_be_read(record)


def _can_be_read(record: TlsaRecord) -> bool:
    """Return whether a record has a certificate, or the key of one."""
    # A large library, and few hosts have such a record.
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_der_public_key  # noqa: PLC0415
    from cryptography.x509 import InvalidVersion, load_der_x509_certificate  # noqa: PLC0415

    try:
        (load_der_public_key if record.selector else load_der_x509_certificate)(record.data)
    except (ValueError, LookupError, InvalidVersion, UnsupportedAlgorithm):
        return False
    return True
