"""What `relay check` finds about addresses where Relay listens, and their certificates."""

import ssl
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from msgspec import Struct

from relay.base.certificates import certificate_of_handshake, load_pair
from relay.base.clock import Clock
from relay.base.settings.document import Document, KeyPath
from relay.base.settings.tree import ListenerTls, Settings
from relay.base.settings.values import is_ip
from relay.base.socket_address import Address
from relay.base.sockets import has_address
from relay.delivery.smtp.tls import certificate_matches, certificate_names
from relay.operation.commands.check_network import (
    OCCUPIED,
    WILDCARDS,
    CheckFinding,
    CheckResult,
    port_fault,
    warning_of,
)

_SOON_S = 14 * 86400


class CheckedListener(Struct, frozen=True):
    """A configured address, and the certificates that are used there."""

    key: KeyPath
    address: Address
    tls: ListenerTls | None = None
    tls_key: KeyPath = ()

    @property
    def is_open(self) -> bool:
        """Return whether other machines can reach the address."""
        return not self.address.is_loopback


def _http_listeners(settings: Settings) -> list[CheckedListener]:
    """Return the addresses that accept tokens."""
    tls = settings.http.tls
    listeners = [
        CheckedListener(("http", "listen", number), address)
        if tls is None or address.plain or address.path
        else CheckedListener(("http", "listen", number), address, tls, ("http", "tls"))
        for number, address in enumerate(settings.http.listen)
    ]
    if settings.observe.metrics is not None:
        listeners.append(CheckedListener(("observe", "metrics"), settings.observe.metrics))
    return listeners


def _smtp_listeners(settings: Settings) -> list[CheckedListener]:
    """Return the SMTP listeners."""
    return [
        CheckedListener(("smtp", number, "listen"), smtp.listen, smtp.tls, ("smtp", number, "tls"))
        for number, smtp in enumerate(settings.smtp)
    ]


class CertificateFinding(Struct, frozen=True):
    """The fault or the warning that a certificate causes for clients."""

    fault: str = ""
    warning: str = ""


def _assess_listener(
    listener: CheckedListener, hostname: str, now_s: float
) -> Iterator[tuple[KeyPath, CertificateFinding]]:
    """Yield, for each certificate of a listener, what prevents clients from verifying it, and the
    path of its key in the configuration.

    The first certificate must be for the names of the listener, unless another certificate is.
    """
    assert listener.tls is not None
    names = _names(listener, hostname)
    certificate: Mapping[str, Any] = {}
    for place, tls in reversed(listener.tls.pairs):
        if any(certificate_matches(certificate, name) for name in names):
            names = []
        try:
            certificate = certificate_of_handshake(
                load_pair(tls.certificate, tls.key), tls.certificate
            )
            finding = assess_certificate(certificate, [] if any(place) else names, now_s)
        except ssl.SSLCertVerificationError as error:
            finding = CertificateFinding(f"found one that clients reject: {error.verify_message}")
        except OSError as error:
            reason = error.strerror or error
            finding = CertificateFinding(f"found one that fails in a handshake: {reason}")
        yield (*listener.tls_key, *place, "certificate"), finding


def assess_certificate(
    certificate: Mapping[str, Any], names: Sequence[str], now_s: float
) -> CertificateFinding:
    """Return what prevents clients that expect one of `names`, or any, from verifying it."""
    begin_s = ssl.cert_time_to_seconds(certificate["notBefore"])
    end_s = ssl.cert_time_to_seconds(certificate["notAfter"])
    if end_s <= now_s:
        return CertificateFinding(
            f"found one that expired on {_day(end_s)}, expected one that is valid"
        )
    if begin_s > now_s:
        return CertificateFinding(
            f"found one that begins on {_day(begin_s)}, expected one that is valid"
        )
    if names and not any(certificate_matches(certificate, name) for name in names):
        actual = certificate_names(certificate)
        return CertificateFinding(f"found one for {actual}, expected one for {' or '.join(names)}")
    if end_s - now_s < _SOON_S:
        return CertificateFinding(warning=f"found one that expires on {_day(end_s)}: renew it")
    return CertificateFinding()


def _day(moment_s: float) -> str:
    return datetime.fromtimestamp(moment_s, UTC).date().isoformat()


def _names(listener: CheckedListener, hostname: str) -> list[str]:
    """Return the names that clients may use for the listener."""
    names = [hostname]
    host = listener.address.host
    if host and host not in WILDCARDS:
        names.append(host)
    if not listener.is_open:
        names.append("localhost")
    return list(dict.fromkeys(names))


def listener_at(host: Address, settings: Settings) -> CheckedListener | None:
    """Return the SMTP listener at the address of a next hop, if this relay has one there."""
    name = "127.0.0.1" if host.host == "localhost" else host.host
    is_here = name == settings.hostname or (is_ip(name) and has_address(name))
    for listener in _smtp_listeners(settings):
        if listener.address.port == host.port and (
            name == listener.address.host or (is_here and listener.address.host in WILDCARDS)
        ):
            return listener
    return None


def check_listeners(settings: Settings, place: Document, clock: Clock) -> Iterator[CheckFinding]:
    """Check ports and certificates, and warn of listeners without TLS."""
    http, smtp = _http_listeners(settings), _smtp_listeners(settings)
    is_free = True
    for listener in (*http, *smtp):
        if expected := port_fault(listener.address, settings.run_dir):
            is_free = False
            text = f'found "{listener.address}", expected {expected}'
            fault, waits = str(place.fault(listener.key, text)), expected.startswith(OCCUPIED)
            yield CheckFinding("listeners", CheckResult.FAULT, fault, refuses_start=not waits)
    for listener in http:
        if listener.is_open and listener.tls is None and settings.own_domains:
            text = (
                f'found "{listener.address}", where passwords, tokens and mail are sent in clear '
                "text; expected http.tls, or loopback with a TLS proxy in front"
            )
            yield warning_of("listeners", place.fault(listener.key, text))
    yield from _proxies(settings, place)
    yield from _certificates(settings, place, clock)
    if is_free:
        addresses = ", ".join(str(listener.address) for listener in (*http, *smtp))
        yield CheckFinding("listeners", CheckResult.OK, addresses)


def _proxies(settings: Settings, place: Document) -> Iterator[CheckFinding]:
    """Warn if there is a proxy on this machine that the configuration does not name."""
    http = settings.http
    inner = (address for address in http.listen if address.is_loopback)
    local = next((address for address in inner if not address.is_elsewhere), None)
    if http.public_url and local is not None and not http.proxy_networks:
        text = (
            f'found it with "{local}" in http.listen and without http.proxy_networks, expected the '
            'networks of the proxy there, for example ["127.0.0.1/32"]: Forwarded and '
            "X-Forwarded-For are ignored, and all clients of the proxy count as one"
        )
        yield warning_of("listeners", place.fault(("http", "public_url"), text))


def _certificates(settings: Settings, place: Document, clock: Clock) -> Iterator[CheckFinding]:
    """Yield what is wrong with each certificate, once if several listeners use it."""
    public_host = urlsplit(settings.http.public_url).hostname
    findings: dict[CheckFinding, None] = {}
    for listener in (*_http_listeners(settings), *_smtp_listeners(settings)):
        if listener.tls is None:
            continue
        hostname = (listener.key[0] == "http" and public_host) or settings.hostname
        for key, certificate in _assess_listener(listener, hostname, clock.time_us() / 1e6):
            if certificate.fault:
                text = str(place.fault(key, certificate.fault))
                findings[CheckFinding("certificates", CheckResult.FAULT, text)] = None
            if certificate.warning:
                findings[warning_of("certificates", place.fault(key, certificate.warning))] = None
    yield from findings
