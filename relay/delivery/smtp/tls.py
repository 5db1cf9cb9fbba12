"""TLS contexts and certificate checks for SMTP sessions.

"verify" trusts the certificates of the system, or of the given CA file alone; other levels accept
any certificate. What follows a failed STARTTLS is in `connect`. See RFC 7435 (opportunistic), RFC
9525 (names), RFC 8314, RFC 5321 4.1.3 (address literals).
"""

import _ssl
import ssl
import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from relay.base.message.address import lower_case
from relay.base.phrases import named
from relay.base.socket_address import ip_of

_CONTEXTS_KEPT = 32


@lru_cache(maxsize=1)
def unverified_context() -> ssl.SSLContext:
    """Return a context that encrypts and accepts any certificate, as Postfix's `encrypt`."""
    context = _new_context()
    context.verify_mode = ssl.CERT_NONE
    return context


@lru_cache(maxsize=_CONTEXTS_KEPT)
def verifying_context(ca: Path | None, _digest: str = "") -> ssl.SSLContext:
    """Return a context that verifies the chain against the system's store, or against `ca` alone,
    whose content has this digest.

    certificate_matches() checks the name, so that an error can say which names the certificate
    has. Raises OSError or ssl.SSLError for a file without certificates.
    """
    context = _new_context()
    if ca is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    else:
        context.load_verify_locations(cafile=ca)
    return context


def _new_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # the default context loads 140 certificates
    context.check_hostname = False
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def certificate_matches(certificate: Mapping[str, Any], host: str) -> bool:
    """Whether a certificate with a verified chain is for `host`.

    Only subjectAltName counts. A name may have "*" as its whole first label. An IP address needs
    an iPAddress; a dNSName does not match it.
    """
    address = ip_of(host)
    if address is not None:
        return any(ip_of(text) == address for text in _names(certificate, "IP Address"))
    return any(_matches(lower_case(text), host.lower()) for text in _names(certificate, "DNS"))


def certificate_names(certificate: Mapping[str, Any]) -> str:
    """Return the first names and addresses of a certificate."""
    addresses = (f"the address {text}" for text in _names(certificate, "IP Address"))
    names = [*_names(certificate, "DNS"), *addresses]
    return named(names, most=3) or "no host"


def peer_chain(tls: ssl.SSLObject) -> list[bytes]:
    """Return the certificates that the peer showed (DER), beginning with the peer's; nothing is
    verified.
    """
    if sys.version_info >= (3, 13):
        chain = tls.get_unverified_chain()
    else:
        of_openssl = cast("Any", tls)._sslobj.get_unverified_chain() or ()  # noqa: SLF001
        chain = [certificate.public_bytes(_ssl.ENCODING_DER) for certificate in of_openssl]
    return chain


def _names(certificate: Mapping[str, Any], kind: str) -> list[str]:
    return [text for name_kind, text in certificate.get("subjectAltName", ()) if name_kind == kind]


def _matches(pattern: str, host: str) -> bool:
    """RFC 9525 6.3: equal, or "*" for exactly one label, followed by at least two others."""
    if pattern == host:
        return bool(host)
    first, _, rest = pattern.partition(".")
    label, _, domain = host.partition(".")
    return first == "*" and "." in rest and bool(label) and rest == domain
