"""Certificates of listeners: load and check pairs, choose a pair by the server name that a client
sends (SNI, RFC 6066 3), and replace pairs while sessions continue.

A pair is a PEM certificate chain and its key. RFC 9325: TLS 1.2 and later.
"""

import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

_HANDSHAKE_ROUNDS_MAX = 10
_NO_CHECK_TIME = ssl.VerifyFlags(0x200000)  # X509_V_FLAG_NO_CHECK_TIME: the caller has the time
_NO_PASSWORD = "-"  # noqa: S105 - without one OpenSSL would prompt


class CertificateError(OSError):
    """A pair cannot be used; the text is the reason."""


def load_pair(certificate: Path, key: Path) -> ssl.SSLContext:
    """Return a server's context with this pair. Raises CertificateError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    try:
        context.load_cert_chain(certificate, key, password=_NO_PASSWORD)
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or "not PEM"
        if reason == "KEY_VALUES_MISMATCH":
            reason += ": this key belongs to another certificate"
        raise CertificateError(reason) from None
    except OSError as error:
        raise CertificateError(f"{certificate} or {key}: {error.strerror or error}") from None
    return context


def client_of_pair(*certificates: Path) -> ssl.SSLContext:
    """Return the context of a client that expects one of these certificates, for any name.

    Raises OSError, ssl.SSLError.
    """
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    for certificate in certificates:
        client.load_verify_locations(cafile=certificate)
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return client


def certificate_of_handshake(server: ssl.SSLContext, certificate: Path) -> Mapping[str, Any]:
    """Return the certificate of `server` as a client gets it, in a TLS handshake in memory.

    `certificate` is its file. Raises OSError, ssl.SSLError.
    """
    client = client_of_pair(certificate)
    client.verify_flags |= _NO_CHECK_TIME
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(to_client, to_server)
    answering = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(_HANDSHAKE_ROUNDS_MAX):
        waiting = 0
        for side in (asking, answering):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                waiting += 1
        if not waiting:
            break
    return asking.getpeercert() or {}


def dns_names(certificate: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the DNS names of a certificate in lower case; one may begin with "*."."""
    names = certificate.get("subjectAltName", ())
    return tuple([name.lower() for kind, name in names if kind == "DNS"])


class CheckedPair(Struct, frozen=True):
    """A pair for a listener; `pem` is the content of its files, `names` are its DNS names."""

    certificate: Path
    context: ssl.SSLContext
    pem: bytes
    names: tuple[str, ...]

    def end_s(self) -> float:
        """Return when it ends, since 1970; 0 if clients would reject it."""
        try:
            facts = certificate_of_handshake(self.context, self.certificate)
        except OSError:
            return 0.0
        return float(ssl.cert_time_to_seconds(facts["notAfter"]))


class ServerCertificate:
    """The certificates of one listener. `context` is for all its handshakes.

    At each handshake, `context` is replaced by the context of a pair that is in use: the pair with
    the server name that the client sends, else the first. Sessions keep their context.
    """

    def __init__(self, certificate: Path, key: Path, *further: tuple[Path, Path]) -> None:
        """Raises CertificateError. An expired pair is used: `relay check` reports it."""
        self.context = load_pair(certificate, key)
        self.context.sni_callback = self._choose
        self.use([_unchecked(*files) for files in ((certificate, key), *further)])

    def pair(self, certificate: Path, key: Path, *, now_s: float) -> CheckedPair:
        """Return the pair in these files, for use(). It may be one that is in use already.

        Raises CertificateError if it cannot be used, or is not valid at `now_s`.
        """
        pem = _pem(certificate, key)
        if in_use := next((pair for pair in self.pairs if pair.pem == pem), None):
            return in_use
        context = load_pair(certificate, key)
        try:
            facts = certificate_of_handshake(context, certificate)
        except OSError as error:
            raise CertificateError(f"it fails in a handshake: {error.strerror or error}") from None
        begins, ends = (facts.get(date, "an unknown date") for date in ("notBefore", "notAfter"))
        if not facts or ssl.cert_time_to_seconds(ends) <= now_s:
            raise CertificateError(f"it expired on {ends}")
        if ssl.cert_time_to_seconds(begins) > now_s:
            raise CertificateError(f"it is not valid before {begins}")
        return CheckedPair(certificate, context, pem, dns_names(facts))

    def use(self, pairs: Sequence[CheckedPair]) -> None:
        """Use these pairs for handshakes from now on."""
        self.pairs = tuple(pairs)
        # if two pairs have a name, the first one is used
        self._by_name = {name: pair for pair in reversed(pairs) for name in pair.names}

    def pair_for(self, name: str) -> CheckedPair:
        """Return the pair for a client that asks for this name, or for none."""
        whole = name.lower()
        wildcard = f"*.{whole.partition('.')[2]}"
        return self._by_name.get(whole) or self._by_name.get(wildcard) or self.pairs[0]

    def _choose(self, session: ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> None:
        """Called at each ClientHello, also without a server name."""
        session.context = self.pair_for(name or "").context


def _unchecked(certificate: Path, key: Path) -> CheckedPair:
    pem, context = _pem(certificate, key), load_pair(certificate, key)
    return CheckedPair(certificate, context, pem, names_in(context, certificate))


def names_in(context: ssl.SSLContext, certificate: Path) -> tuple[str, ...]:
    """Return the DNS names of a pair, none if clients would reject it."""
    try:
        return dns_names(certificate_of_handshake(context, certificate))
    except OSError:
        return ()


def _pem(certificate: Path, key: Path) -> bytes:
    """Return the contents of both files as one PEM, in which OpenSSL finds both."""
    try:
        return b"\n".join(path.read_bytes() for path in (certificate, key))
    except OSError as error:
        raise CertificateError(f"{certificate} or {key}: {error.strerror}") from None
