"""SIGHUP replaces certificates while sessions go on; a pair that cannot be used changes nothing."""

import contextlib
import http.client
import os
import shutil
import signal
import smtplib
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.relay_config import to_toml
from tests.support.relay_process import RelayProcess, until
from tests.support.tls import Authority, Certificate, authority

GATE = True

__all__ = ["authority"]

SESSIONS = 200
STARTTLS, IMPLICIT, HTTPS = 0, 1, 2  # the listeners
ALL = (STARTTLS, IMPLICIT, HTTPS)


@dataclass(frozen=True)
class Served:
    """A relay with a pair of files, and the CA that issues them."""

    relay: RelayProcess
    authority: Authority
    folder: Path

    def put(self, made: Certificate, *, key: Certificate | None = None) -> None:
        """Make `made` the pair of the configuration; `key` has another key."""
        shutil.copy(made.certificate, self.folder / "certificate.pem")
        shutil.copy((key or made).key, self.folder / "key.pem")

    def session(self, listener: int) -> smtplib.SMTP:
        context = ssl.create_default_context(cafile=str(self.authority.certificate))
        host, port = self.relay.smtp_address(listener)
        if listener == IMPLICIT:
            return smtplib.SMTP_SSL(host, port, "client.test", timeout=120, context=context)
        session = smtplib.SMTP(host, port, "client.test", timeout=120)
        session.starttls(context=context)
        return session

    def shown(self, listener: int) -> bytes | None:
        """The certificate of a new session."""
        if listener == HTTPS:
            with contextlib.closing(self.https()) as client:
                return client.sock.getpeercert(binary_form=True)
        with self.session(listener) as session:
            return session.sock.getpeercert(binary_form=True)

    def https(self) -> http.client.HTTPSConnection:
        """A connection after its first request."""
        context = ssl.create_default_context(cafile=str(self.authority.certificate))
        host, _, port = self.relay.ready["https"][0].rpartition(":")
        client = http.client.HTTPSConnection(host, int(port), timeout=120, context=context)
        client.request("GET", "/readyz")
        assert client.getresponse().read() == b"ready\n"
        return client

    def hang_up(self, word: str) -> str:
        """Send SIGHUP, wait until the log says `word`, and return the new lines."""
        before = len(self.relay.log)
        os.kill(self.relay.process.pid, signal.SIGHUP)
        until(f"{word} in the log", lambda: word in self.relay.log[before:])
        return self.relay.log[before:]


def der(made: Certificate) -> bytes:
    return ssl.PEM_cert_to_DER_cert(made.certificate.read_text())


@pytest.fixture(scope="module")
def issued(authority: Authority) -> tuple[Certificate, Certificate]:
    return authority.issue("IP:127.0.0.1"), authority.issue("IP:127.0.0.1", "DNS:new.test")


@pytest.fixture(scope="module")
def started(authority, issued, tmp_path_factory, serve_module) -> Served:
    folder = tmp_path_factory.mktemp("pair")
    tls = {"certificate": str(folder / "certificate.pem"), "key": str(folder / "key.pem")}
    trusted = {"listen": "127.0.0.1:0", "trusted_networks": ["127.0.0.1/32"], "tls": tls}
    web = {"listen": ["http://127.0.0.1:0", "127.0.0.1:0"], "tls": tls}
    config = {"smtp": [trusted, trusted | {"role": "submissions"}], "http": web}
    made = Served(serve_module(config=config, start=False), authority, folder)
    made.put(issued[0])
    made.relay.start()
    return made


@pytest.fixture
def served(started: Served, issued) -> Served:
    """The relay of the module, with the first pair."""
    started.put(issued[0])
    started.relay.write_config(started.relay.config)
    started.hang_up("reloaded")
    return started


def test_a_certificate_is_replaced_under_200_open_sessions(served, issued) -> None:
    old, new = issued
    with contextlib.ExitStack() as opened:
        sessions = [opened.enter_context(served.session(number % 2)) for number in range(SESSIONS)]
        kept_alive = opened.enter_context(contextlib.closing(served.https()))
        served.put(new)
        served.hang_up("reloaded")
        assert [served.shown(one) for one in ALL] == [der(new)] * 3
        kept_alive.request("GET", "/healthz")
        assert kept_alive.getresponse().status == 200
        assert kept_alive.sock.getpeercert(binary_form=True) == der(old)
        for session in sessions:
            assert session.sock.getpeercert(binary_form=True) == der(old)
            assert session.noop()[0] == 250
        for session in sessions[-2:]:  # one of each listener
            session.login("alice@example.test", "alice")
            session.sendmail("alice@example.test", "bob@example.test", "Subject: still here\n\n.\n")


def mismatched(served: Served, new: Certificate) -> str:
    served.put(new, key=served.authority.issue("DNS:third.test"))
    return "KEY_VALUES_MISMATCH: this key belongs to another certificate"


def missing(served: Served, _new: Certificate) -> str:
    (served.folder / "key.pem").unlink()
    return "No such file or directory"


def expired(served: Served, _new: Certificate) -> str:
    served.put(served.authority.issue("IP:127.0.0.1", days=-1))
    return "it expired on"


def not_valid_yet(served: Served, _new: Certificate) -> str:
    served.put(served.authority.issue("IP:127.0.0.1", days=3, since=2))
    return "it is not valid before"


@pytest.mark.parametrize("spoil", [mismatched, missing, expired, not_valid_yet])
def test_a_bad_pair_is_refused_and_the_old_one_stays(served, issued, spoil) -> None:
    old, new = issued
    why = spoil(served, new)
    lines = served.hang_up("the previous configuration stays active")
    assert "not reloaded" in lines
    assert "smtp[0].tls." in lines
    assert why in lines
    assert [served.shown(one) for one in ALL] == [der(old)] * 3
    served.put(new)
    served.hang_up("reloaded")
    assert served.shown(IMPLICIT) == der(new)


def test_an_expired_pair_that_is_in_use_hinders_no_reload(served, issued) -> None:
    served.put(served.authority.issue("IP:127.0.0.1", days=-1))
    served.relay.restart()
    assert '"new_certificates":0' in served.hang_up("reloaded")
    served.put(issued[1])
    assert '"new_certificates":3' in served.hang_up("reloaded")


def test_another_path_is_used_after_a_reload(served, issued) -> None:
    new = issued[1]
    tls = {"certificate": str(new.certificate), "key": str(new.key)}
    config = served.relay.config
    paths = {"smtp": [one | {"tls": tls} for one in config["smtp"]]}
    served.relay.write_config(config | paths | {"http": config["http"] | {"tls": tls}})
    assert "a restart is needed" not in served.hang_up("reloaded")
    assert [served.shown(one) for one in ALL] == [der(new)] * 3


def table(made: Certificate) -> dict[str, str]:
    return {"certificate": str(made.certificate), "key": str(made.key)}


def shown_for(relay: RelayProcess, listener: int, name: str) -> bytes | None:
    """The certificate that a client gets who asks for this name, or for none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # reads no authorities: 20 ms of CPU
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if listener == HTTPS:
        host, _, port = relay.ready["https"][0].rpartition(":")
        address = (host, int(port))
    else:
        address = relay.smtp_address(listener)
    with socket.create_connection(address, timeout=120) as plain:
        if listener == STARTTLS:
            for sent in (b"EHLO client.test\r\n", b"STARTTLS\r\n", b""):
                while plain.recv(4096)[-1:] != b"\n":
                    pass
                plain.sendall(sent)
        with context.wrap_socket(plain, server_hostname=name or None) as session:
            return session.getpeercert(binary_form=True)


def test_the_name_that_a_client_asks_for_chooses(authority: Authority, serve) -> None:
    """The first is for clients without a name or with an unknown one; a whole name wins over "*."."""
    first, wild = authority.issue("DNS:first.test"), authority.issue("DNS:*.wild.test")
    exact = authority.issue("DNS:mail.wild.test", "DNS:Other.test")
    tables = [table(first) | {"require": True}, table(wild), table(exact)]
    listener = {"listen": "127.0.0.1:0", "tls": tables}
    web = {"listen": ["http://127.0.0.1:0", "127.0.0.1:0"], "tls": [table(first), *tables[1:]]}
    config = {"smtp": [listener, listener | {"role": "submissions"}], "http": web}
    expected = {
        "": first,
        "unknown.test": first,
        "wild.test": first,
        "a.b.wild.test": first,
        "a.wild.test": wild,
        "mail.wild.test": exact,
        "MAIL.Wild.test": exact,
        "other.test": exact,
    }
    relay = serve(config=config)
    for number in ALL:
        for name, made in expected.items():
            assert shown_for(relay, number, name) == der(made), (number, name)
    with smtplib.SMTP(*relay.smtp_address(STARTTLS), timeout=120) as session:
        session.ehlo()
        assert session.mail("a@b.test")[0] == 530
    new, added = authority.issue("DNS:new.wild.test"), authority.issue("DNS:added.test")
    served = Served(relay, authority, relay.folder)
    shutil.copy(new.certificate, wild.certificate)
    shutil.copy(new.key, wild.key)
    smtp = [one | {"tls": [*tables, table(added)]} for one in relay.config["smtp"]]
    relay.write_config(relay.config | {"smtp": smtp})
    lines = served.hang_up("reloaded")
    assert "a restart is needed" not in lines
    assert '"new_certificates":3' in lines
    assert shown_for(relay, HTTPS, "new.wild.test") == der(new)
    assert shown_for(relay, IMPLICIT, "added.test") == der(added)
    assert shown_for(relay, STARTTLS, "a.wild.test") == der(first)
    in_use, late = der(added), authority.issue("DNS:added.test", days=-1)
    shutil.copy(late.certificate, added.certificate)
    shutil.copy(late.key, added.key)
    lines = served.hang_up("the previous configuration stays active")
    assert "smtp[0].tls[3].certificate: found" in lines
    assert "it expired on" in lines
    assert shown_for(relay, IMPLICIT, "added.test") == in_use


def test_relay_send_with_a_token_uses_https_if_there_is_nothing_else(served, authority) -> None:
    """It trusts the certificate of the configuration, whatever its names are."""
    served.put(authority.issue("DNS:other.test"))
    served.hang_up("reloaded")
    config = served.relay.config
    secure = {"http": config["http"] | {"listen": served.relay.ready["https"]}}
    file = served.relay.folder / "https.toml"
    file.write_text(to_toml(config | secure))
    words = ("send", "--config", str(file), "--to", "bob@example.test", "--token", "alice")
    done = served.relay.cli(*words)
    assert (done.returncode, done.stderr) == (0, "")
    served.put(authority.issue("DNS:stranger.test"))  # not yet that of the running relay
    done = served.relay.cli(*words)
    assert done.returncode == 69
    assert "CERTIFICATE_VERIFY_FAILED" in done.stderr
