"""The development CA: its files, its name constraints, its renewal, and clients that trust it."""

import multiprocessing
import os
import shutil
import socket
import ssl
import threading
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from relay.base.certificates import client_of_pair, load_pair
from relay.base.clock import SystemClock
from relay.base.settings.tree import CertificateFiles
from relay.development.authority import LEAF_DAYS, DevelopmentCertificate, open_authority
from relay.development.issuer import Issuer, pem_of
from tests.support.disks import MEMORY
from tests.support.tables import each_row

NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "data/relay/ca"


def open_once(directory: Path) -> bytes:
    return open_authority(directory, now=NOW).certificate.read_bytes()


def handshake(files, ca: Path, name: str, *, strict: bool = True) -> None:
    """See handshake_with()."""
    handshake_with(load_pair(files.certificate, files.key), ca, name, strict=strict)


def handshake_with(server: ssl.SSLContext, ca: Path, name: str, *, strict: bool = True) -> None:
    """Connect as a client that trusts `ca` and expects `name`. Raises SSLCertVerificationError."""
    client = ssl.create_default_context(cafile=ca)
    if strict:  # the default of Python 3.13
        client.verify_flags |= ssl.VERIFY_X509_STRICT
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(10)
        theirs.settimeout(10)

        def answer():
            try:
                server.wrap_socket(theirs, server_side=True).close()
            except OSError:
                theirs.close()

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            client.wrap_socket(ours, server_hostname=name).close()
        finally:
            ours.close()
            thread.join()


def test_who_knows_its_name_can_read_the_certificate_only_and_it_is_made_once(directory):
    first = open_once(directory)
    assert directory.stat().st_mode & 0o777 == 0o711
    assert (directory / "ca.pem").stat().st_mode & 0o777 == 0o644
    assert (directory / "ca.key").stat().st_mode & 0o777 == 0o600
    assert open_once(directory) == first
    assert sorted(one.name for one in directory.iterdir()) == ["ca.key", "ca.pem"]


@pytest.mark.skipif(not os.access(MEMORY, os.W_OK), reason="/dev/shm, of locks, is not writable")
def test_processes_that_start_at_once_share_one_authority(directory):
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        found = set(pool.map(open_once, [directory] * 6))
    assert found == {(directory / "ca.pem").read_bytes()}
    files = open_authority(directory, now=NOW).issue(directory / "tls", (), now=NOW)
    handshake(files, directory / "ca.pem", "localhost")


@each_row("name", ["localhost", "127.0.0.1", "::1", "example.test", "a.example.test"])
def test_clients_accept_the_names_of_loopback(directory, name):
    authority = open_authority(directory, now=NOW)
    handshake(authority.issue(directory / "tls", (), now=NOW), authority.certificate, name)


@pytest.mark.parametrize("host", ["relay", "mail_1.corp.test", "192.0.2.7", "[2001:db8::1]"])
def test_a_name_given_as_an_option_widens_the_constraints(directory, host):
    """A copy of the certificate made earlier stays good for the names that it allows."""
    before = open_authority(directory, now=NOW)
    copy = directory / "copy.pem"
    shutil.copy(before.certificate, copy)
    forged = before.issue(directory / "forged", [host], now=NOW)
    with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree violation"):
        handshake(forged, copy, "localhost")
    after = open_authority(directory, [host], now=NOW)
    files = after.issue(directory / "tls", [host], now=NOW)
    handshake(files, after.certificate, host.strip("[]"))
    open_authority(directory, ["another.test"], now=NOW)
    plain = open_authority(directory, now=NOW).issue(directory / "plain", (), now=NOW)
    handshake(plain, copy, "localhost")
    handshake(files, after.certificate, host.strip("[]"))


@each_row("host", ["evil.test", "localhost.evil.test", "notlocalhost", "10.0.0.1"])
def test_the_constraints_forbid_other_names(directory, host):
    authority = open_authority(directory, ["other.test"], now=NOW)
    files = authority.issue(directory / "tls", [host], now=NOW)
    with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree violation"):
        handshake(files, authority.certificate, host)


@pytest.mark.parametrize("name", ["ca.key", "ca.pem"])
@pytest.mark.parametrize("damage", ["missing", "empty", "of another"])
def test_a_damaged_file_is_replaced(directory, tmp_path, name, damage):
    open_once(directory)
    file = directory / name
    if damage == "missing":
        file.unlink()
    elif damage == "empty":
        file.write_bytes(b"")
    else:
        open_once(tmp_path / "other")
        shutil.copy(tmp_path / "other" / name, file)
    authority = open_authority(directory, now=NOW)
    handshake(authority.issue(directory / "tls", (), now=NOW), authority.certificate, "localhost")


def test_it_is_renewed_in_time_with_the_same_key(directory):
    first = open_once(directory)
    key = (directory / "ca.key").read_bytes()
    later = NOW + timedelta(days=4.1 * 365)
    renewed = open_authority(directory, now=later).certificate.read_bytes()
    assert renewed != first
    assert (directory / "ca.key").read_bytes() == key


def test_a_leaf_is_valid_for_a_year_and_its_key_private(directory):
    files = open_authority(directory, now=NOW).issue(directory / "tls", (), now=NOW)
    assert files.key.stat().st_mode & 0o777 == 0o600
    shown = x509.load_pem_x509_certificate(files.certificate.read_bytes())
    assert shown.not_valid_after_utc == NOW + timedelta(days=LEAF_DAYS)
    client_of_pair(files.certificate)


GRAPH = ("graph.microsoft.com", "login.microsoftonline.com")


@pytest.fixture
def certificate(directory, tmp_path):
    """The certificates of a relay that stands for hosts of Graph."""
    return DevelopmentCertificate(
        tmp_path, [], ca_dir=directory, clock=SystemClock(), proxy_names=GRAPH
    )


@each_row("name", GRAPH)
def test_clients_of_the_proxy_trust_the_bundle_alone(certificate, name):
    server = certificate.proxy.hosts.context()
    handshake_with(server, certificate.bundle, name)
    handshake(certificate.files, certificate.bundle, "localhost")
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
        handshake_with(server, certificate.ca, name)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake_with(server, certificate.bundle, f"x.{name}")


@each_row("host", ["evil.test", "localhost", "com", "10.0.0.1", "127.0.0.1", "::1"])
def test_the_authority_of_the_proxy_is_for_its_names_alone(certificate, tmp_path, host):
    bundle = x509.load_pem_x509_certificates(certificate.bundle.read_bytes())
    issuer = Issuer(bundle[1], certificate.proxy._key)
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    files = CertificateFiles(tmp_path / "forged.pem", tmp_path / "forged.key")
    files.key.write_bytes(pem_of(key))
    files.certificate.write_bytes(
        issuer.sign(key.public_key(), [host], now=now, end=now + timedelta(hours=1))
    )
    with pytest.raises(ssl.SSLCertVerificationError, match="subtree violation"):
        handshake(files, certificate.bundle, host)


def test_the_keys_of_the_proxy_are_in_no_file(certificate, directory, tmp_path):
    keys = [one for one in tmp_path.rglob("*") if one.is_file() and b"PRIVATE" in one.read_bytes()]
    assert sorted(keys) == sorted([directory / "ca.key", certificate.files.key])
    public = certificate.proxy._key.public_key()
    for one in keys:
        assert load_pem_private_key(one.read_bytes(), None).public_key() != public
