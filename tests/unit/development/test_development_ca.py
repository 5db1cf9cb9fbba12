"""The development CA: its files, its name constraints, its renewal, and clients that trust it."""

import multiprocessing
import shutil
import socket
import ssl
import subprocess
import threading
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from relay.certificates import client_of_pair, load_pair
from relay.development.authority import LEAF_DAYS, open_authority

NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "data/relay/ca"


def open_once(directory: Path) -> bytes:
    return open_authority(directory, now=NOW).certificate.read_bytes()


def handshake(files, ca: Path, name: str, *, strict: bool = True) -> None:
    """Connect as a client that trusts `ca` and expects `name`. Raises SSLCertVerificationError."""
    client = ssl.create_default_context(cafile=ca)
    if strict:  # the default of Python 3.13
        client.verify_flags |= ssl.VERIFY_X509_STRICT
    server = load_pair(files.certificate, files.key)
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


def test_files_are_private_and_made_once(directory):
    first = open_once(directory)
    assert directory.stat().st_mode & 0o777 == 0o700
    assert (directory / "ca.key").stat().st_mode & 0o777 == 0o600
    assert open_once(directory) == first
    assert sorted(one.name for one in directory.iterdir()) == ["ca.key", "ca.pem", "lock"]


def test_processes_that_start_at_once_share_one_authority(directory):
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(4, mp_context=context) as pool:
        found = set(pool.map(open_once, [directory] * 12))
    assert found == {(directory / "ca.pem").read_bytes()}
    files = open_authority(directory, now=NOW).issue(directory / "tls", (), now=NOW)
    handshake(files, directory / "ca.pem", "localhost")


@pytest.mark.parametrize(
    "name", ["localhost", "127.0.0.1", "::1", "example.test", "a.example.test"]
)
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


@pytest.mark.parametrize("host", ["evil.test", "localhost.evil.test", "notlocalhost", "10.0.0.1"])
def test_the_constraints_forbid_other_names(directory, host):
    authority = open_authority(directory, ["other.test"], now=NOW)
    files = authority.issue(directory / "tls", [host], now=NOW)
    with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree violation"):
        handshake(files, authority.certificate, host)


def test_many_names_do_not_make_the_certificate_grow_for_ever(directory):
    for number in range(3):
        open_authority(directory, [f"h{number}-{one}.test" for one in range(60)], now=NOW)
    assert (directory / "ca.pem").stat().st_size < 8000


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
    later = NOW + timedelta(days=4.8 * 365)
    renewed = open_authority(directory, now=later).certificate.read_bytes()
    assert renewed != first
    assert (directory / "ca.key").read_bytes() == key


def test_a_leaf_is_short_lived_and_its_key_private(directory):
    files = open_authority(directory, now=NOW).issue(directory / "tls", (), now=NOW)
    assert files.key.stat().st_mode & 0o777 == 0o600
    shown = ssl._ssl._test_decode_cert(str(files.certificate))
    end = ssl.cert_time_to_seconds(shown["notAfter"])
    assert end == (NOW + timedelta(days=LEAF_DAYS)).timestamp()
    client_of_pair(files.certificate)


def test_openssl_accepts_the_chain(directory):
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    authority = open_authority(directory, now=NOW)
    files = authority.issue(directory / "tls", (), now=NOW)
    words = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-CAfile"]
    done = subprocess.run(
        [*words, authority.certificate, files.certificate],
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
