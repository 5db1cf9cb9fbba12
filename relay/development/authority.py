"""The certificate authority of the development relay, and the certificates that it issues.

Each user has one authority, made on first use and shared by all development relays. Its name
constraints (RFC 5280 4.2.1.10) allow names of loopback, of example.test and those given to a relay
as options; another name makes a new certificate for the same key. Nothing is added to the trust
store of the system: clients are given the file. Certificates are made for each relay at its start.
Raises OSError.
"""

import asyncio
import contextlib
import os
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from msgspec import Struct

from relay.base.certificates import ServerCertificate, load_pair
from relay.base.clock import Clock
from relay.base.files import locked_directory, replace_file
from relay.base.observe.logs import get_logger
from relay.base.settings.tree import CertificateFiles
from relay.base.settings.values import is_ip
from relay.development.issuer import ANY_ADDRESS, Issuer, general_name, pem_of, self_signed
from relay.front_door.http.tunnels import TunnelHosts
from relay.operation.app.development_folder import ForeignFolderError, OwnEntry

_log = get_logger("development")
_MADE_AGAIN = "the CA was made again: programs that have read it, or a copy, need the new file"
_RENEWAL_CHECK_S = 60.0  # short: the machine may have been asleep
LEAF_DAYS = 365  # an authority that is not renewed is valid at least as long
_CA_DAYS = 5 * 365
PROXY_HOURS = 24
PROXY_RENEW_HOURS = 12  # how long a client may keep the bundle that it read
_DOMAINS = ("localhost", "example.test")  # and everything below them
_NETWORKS = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
_DEFAULT_CONSTRAINTS: frozenset[x509.GeneralName] = frozenset(
    (*map(x509.DNSName, _DOMAINS), *map(x509.IPAddress, _NETWORKS))
)
_NAMES = ("localhost", "example.test", "*.example.test", "127.0.0.1", "::1")
_CONSTRAINTS_MAX = 100  # beyond it, names of earlier relays are dropped
_CA_NAME = "Relay development CA"


class DevelopmentAuthority(Struct, frozen=True):
    """An authority. `certificate` is the PEM file that clients trust."""

    certificate: Path
    _issuer: Issuer

    def issue(self, folder: Path, hosts: Sequence[str], *, now: datetime) -> CertificateFiles:
        """Write a certificate for the names of loopback and for `hosts` into `folder`."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = dict.fromkeys((*_NAMES, *hosts))
        end = now + timedelta(days=LEAF_DAYS)
        certificate = self._issuer.sign(key.public_key(), names, now=now, end=end)
        folder.mkdir(mode=0o700, exist_ok=True)
        files = CertificateFiles(folder / "relay.pem", folder / "relay.key")
        replace_file(files.key, pem_of(key), mode=0o600)
        replace_file(files.certificate, certificate, mode=0o644)
        return files


def open_authority(
    directory: Path, hosts: Sequence[str] = (), *, now: datetime
) -> DevelopmentAuthority:
    """Return the authority in `directory`; create or renew it as needed.

    Another user who knows the name of the certificate can read it, as in a volume of containers,
    but not the key. Processes that do this at the same time wait for each other. Raises
    ForeignFolderError, with nothing changed, for a key or a certificate that Relay did not make.
    """
    directory.mkdir(mode=0o711, parents=True, exist_ok=True)
    key_file, file = directory / "ca.key", directory / "ca.pem"
    with locked_directory(directory):
        known_key = _read_key(key_file)
        key = known_key or ec.generate_private_key(ec.SECP256R1())
        certificate = _read_certificate(file, key, now=now)
        directory.chmod(0o711)
        if known_key is None:
            replace_file(key_file, pem_of(key), mode=0o600)
        key_file.chmod(0o600)
        allowed = _allowed_by(certificate) if certificate is not None else set()
        needed = _DEFAULT_CONSTRAINTS | {
            general_name(host, is_constraint=True)
            for host in hosts
            if not _is_allowed_by_default(host)
        }
        if certificate is None or not needed <= allowed:
            if file.exists():
                names = sorted(str(name.value) for name in needed - allowed)
                _log.warning(_MADE_AGAIN, file=str(file), names=", ".join(names))
            if len(allowed | needed) <= _CONSTRAINTS_MAX:
                needed |= allowed
            permitted = sorted(needed, key=lambda name: str(name.value))
            certificate = self_signed(
                key,
                _CA_NAME,
                x509.NameConstraints(permitted, None),
                now=now,
                end=now + timedelta(days=_CA_DAYS),
            )
            replace_file(file, certificate.public_bytes(Encoding.PEM), mode=0o644)
    return DevelopmentAuthority(file, Issuer(certificate, key))


def _read_key(file: Path) -> ec.EllipticCurvePrivateKey | None:
    """Return the key, None if there is none or it is damaged. Raises ForeignFolderError."""
    try:
        key = load_pem_private_key(file.read_bytes(), password=None)
    except (FileNotFoundError, ValueError):
        return None
    except TypeError:  # it is encrypted
        raise _foreign(file) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise _foreign(file)
    return key


def _read_certificate(
    file: Path, key: ec.EllipticCurvePrivateKey, *, now: datetime
) -> x509.Certificate | None:
    """Return the certificate.

    None if it expires soon, or is not of this key. Raises ForeignFolderError.
    """
    try:
        certificate = x509.load_pem_x509_certificate(file.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    if certificate.subject.rfc4514_string() != f"CN={_CA_NAME}":
        raise _foreign(file)
    last = certificate.not_valid_after_utc - timedelta(days=LEAF_DAYS)
    is_valid = certificate.not_valid_before_utc <= now < last
    return certificate if is_valid and certificate.public_key() == key.public_key() else None


def _foreign(file: Path) -> ForeignFolderError:
    return ForeignFolderError(f"{file} was not made by Relay; name another directory")


def _allowed_by(certificate: x509.Certificate) -> set[x509.GeneralName]:
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.NameConstraints)
    except x509.ExtensionNotFound:
        return set()
    return set(constraints.value.permitted_subtrees or ())


def _is_allowed_by_default(host: str) -> bool:
    bare = host.strip("[]")
    if is_ip(bare):
        return any(ip_address(bare) in network for network in _NETWORKS)
    return any(f".{host}".endswith(f".{domain}") for domain in _DOMAINS)


class ProxyAuthority:
    """The authority of the hosts for which a relay is a proxy, and its certificate for them.

    Its key is in memory only, and is new at each start. It is valid for a day. renew() makes new
    certificates for the same key, so that clients can use those that they read until these expire.
    `bundle` is the file of this authority and the ordinary one.
    """

    def __init__(self, folder: Path, names: Collection[str], *, ca: Path, now: datetime) -> None:
        """Issue the certificate into `folder`; `ca` is the file of the ordinary authority.

        Blocks. Raises OSError.
        """
        self._folder = folder
        self._names = sorted(names)
        self._ca = ca
        self.bundle = folder / "bundle.pem"
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.renew(now)

    def renew(self, now: datetime) -> None:
        """Make new certificates of the authority and the hosts. Blocks.

        Raises OSError; then the former certificates stay in use.
        """
        end = now + timedelta(hours=PROXY_HOURS)
        permitted = [x509.DNSName(name) for name in self._names]
        constraints = x509.NameConstraints(permitted, ANY_ADDRESS)
        ca = self_signed(self._key, "Relay development proxy CA", constraints, now=now, end=end)
        key = ec.generate_private_key(ec.SECP256R1())
        file = self._folder / "proxy.pem"
        content = Issuer(ca, self._key).sign(key.public_key(), self._names, now=now, end=end)
        replace_file(file, content, mode=0o644)
        reader, writer = os.pipe()  # OpenSSL reads a key from a path only
        try:
            with os.fdopen(writer, "wb") as pipe:
                pipe.write(pem_of(key))
            context = load_pair(file, Path(f"/dev/fd/{reader}"))
        finally:
            os.close(reader)
        both = self._ca.read_bytes() + ca.public_bytes(Encoding.PEM)
        replace_file(self.bundle, both, mode=0o644)
        self._context = context
        self.renew_at = now + timedelta(hours=PROXY_RENEW_HOURS)

    @property
    def hosts(self) -> TunnelHosts:
        """The hosts and their TLS context, for the HTTP server."""
        return TunnelHosts(frozenset(self._names), lambda: self._context)


class DevelopmentCertificate:
    """The certificate of the HTTPS listener, that of the proxy, and their authorities.

    `bundle` is the file of both authorities, for clients of either.
    """

    def __init__(
        self,
        folder: Path,
        hosts: Sequence[str],
        *,
        ca_dir: Path | None,
        clock: Clock,
        proxy_names: Collection[str] = (),
    ) -> None:
        """Issue the certificate for `hosts` into `folder`/tls. Blocks. Raises OSError.

        The authority is kept in `ca_dir`. If that is None or cannot be written, it is in
        `folder`/ca. Without `proxy_names` the relay is not a proxy, and `bundle` is `ca`.
        """
        self._clock = clock
        for directory in filter(None, (ca_dir, folder / OwnEntry.CA)):
            try:
                authority = open_authority(directory, hosts, now=self._now())
                break
            except OSError:
                if directory != ca_dir:
                    raise
        self.ca = authority.certificate
        self.files = authority.issue(folder / OwnEntry.TLS, hosts, now=self._now())
        self.server = ServerCertificate(self.files.certificate, self.files.key)
        self.proxy = (
            ProxyAuthority(folder / OwnEntry.TLS, proxy_names, ca=self.ca, now=self._now())
            if proxy_names
            else None
        )
        self.bundle = self.proxy.bundle if self.proxy else self.ca

    async def keep_valid(self) -> None:
        """Replace the certificates of the proxy before they expire; does not return."""
        while True:
            await self._clock.sleep(_RENEWAL_CHECK_S)  # sleeps: the clock of the machine may jump
            with contextlib.suppress(OSError):  # the disk may be full: tries again
                if self.proxy is not None and self._now() >= self.proxy.renew_at:
                    await asyncio.to_thread(self.proxy.renew, self._now())

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.time_us() // 1_000_000, UTC)
