"""Who logs in to the SMTP ports of a development relay, what they send, and how TLS fails there."""

import asyncio
import errno
import smtplib
import socket
import ssl
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager

import httpx
import pytest

from relay.base.socket_address import Address
from relay.development.relay import DevelopmentRelay
from relay.testing import Relay
from relay.testing.relay_thread import LOG_NAME
from relay.transport.ingress import smtp_server
from relay.transport.ingress.session_limits import SessionLimits
from tests.support.development_relay import FREE, development_relay
from tests.support.relay_process import until

TOKEN = "a-token-of-a-good-length"
PORTS = ("smtp", "submission", "submissions")
OTHERS = (("apikey", "SG.x"), ("AKIA/x+y", "p"), ("contoso\\joe", "p"), ("joe@contoso.test", ""))


@pytest.fixture(autouse=True)
def no_pause_after_a_failed_login(monkeypatch):
    monkeypatch.setattr(
        smtp_server, "SessionLimits", lambda: SessionLimits(auth_failure_delay_s=0.01)
    )


def running(folder, **options) -> AbstractAsyncContextManager[DevelopmentRelay]:
    return development_relay(folder, **({"submission": FREE, "submissions": FREE} | options))


class Session:
    """A client of one of the ports, whose methods run in a thread."""

    def __init__(self, relay, port):
        self._relay, self._port = relay, port
        self._trust = ssl.create_default_context(cafile=relay.addresses.ca)

    def _connect(self, *, tls=True):
        at = getattr(self._relay.addresses, self._port)
        if self._port == "submissions":
            return smtplib.SMTP_SSL("localhost", at.port, context=self._trust, timeout=120)
        session = smtplib.SMTP("localhost", at.port, timeout=120)
        if self._port == "submission" and tls:
            session.starttls(context=self._trust)
        return session

    async def offers(self, *, tls=True):
        """The extensions that EHLO lists."""

        def ask():
            with self._connect(tls=tls) as session:
                session.ehlo()
                return set(session.esmtp_features)

        return await asyncio.to_thread(ask)

    async def send(self, user="", password="", *, sender="shop@elsewhere.test", header=""):
        """Log in, and send a message; return the reply to the last command."""

        def submit():
            with self._connect() as session:
                try:
                    if user:
                        session.login(user, password)
                    text = f"From: {header or sender}\r\nSubject: {user}\r\n\r\nx"
                    session.sendmail(sender, ["bob@example.test", "ann@else.test"], text)
                except smtplib.SMTPResponseException as error:
                    return f"{error.smtp_code} {error.smtp_error.decode()}"
            return "250"

        return await asyncio.to_thread(submit)


@pytest.mark.parametrize("port", PORTS)
async def test_any_login_sends_from_any_address(short_path, port):
    async with running(short_path / "dev") as relay:
        session = Session(relay, port)
        assert "auth" in await session.offers()
        assert await session.send() == "250"
        for user, password in (*OTHERS, ("alice", "not her name")):
            assert await session.send(user, password) == "250"
            assert await session.send(user, password, header="not an address; x") == "250"
        async with httpx.AsyncClient(trust_env=False) as client:
            answer = await client.get(
                f"http://{relay.addresses.http}/relay/v1/messages?limit=100",
                headers={"Authorization": f"Bearer {relay.token}"},
            )
        logins = {one["subject"]: one["client"]["account"] for one in answer.json()["messages"]}
        assert logins == {
            "": "",
            "apikey": "apikey@example.test",
            "AKIA/x+y": "akia_x@example.test",
            "contoso\\joe": "contoso_joe@example.test",
            "joe@contoso.test": "joe@contoso.test",
            "alice": "alice@example.test",
        }


async def test_strict_senders_have_passwords_and_rights(short_path):
    async with running(short_path / "dev", strict_senders=True) as relay:
        for port in PORTS:
            session = Session(relay, port)
            assert (await session.send("alice", "wrong")).startswith("535 5.7.8 ")
            rejected = await session.send("alice", "alice")
            assert rejected.startswith("553 5.7.1 <shop@elsewhere.test>: the account alice@")
            own = {"sender": "alice@example.test"}
            assert await session.send("alice", "alice", **own) == "250"
            rejected = await session.send("alice", "alice", **own, header="shop@elsewhere.test")
            assert rejected.startswith("553 5.7.1 <shop@elsewhere.test> in From: ")


async def test_strict_senders_with_a_token_log_in_under_tls_only(short_path):
    async with running(short_path / "dev", strict_senders=True, token=TOKEN) as relay:
        assert "auth" not in await Session(relay, "smtp").offers()
        assert await Session(relay, "smtp").send() == "250"
        session = Session(relay, "submissions")
        assert (await session.send("alice", TOKEN)).startswith("553 5.7.1 ")
        assert await session.send("alice", TOKEN, sender="alice@example.test") == "250"


@pytest.mark.parametrize("options", [{}, {"strict_senders": True}, {"token": TOKEN}], ids=str)
async def test_strict_users_refuse_an_unknown_login(short_path, options):
    async with running(short_path / "dev", strict_users=True, **options) as relay:
        relay._accounts.by_token("carol" if not options.get("token") else TOKEN)
        for port in ("smtp", "submissions"):
            session, password = Session(relay, port), options.get("token", "alice")
            assert await session.send("alice", password, sender="alice@example.test") == "250"
            for user in ("dora", "dora@elsewhere.test"):
                refused = await session.send(user, password)
                assert refused.startswith("535 5.7.8 dora@")
                assert refused.endswith(" is no account, and --strict-users makes none")


async def test_a_port_in_use_that_was_named_is_an_error(short_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        used = Address("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(OSError, match=f"cannot listen on {used}") as raised:
            async with running(short_path / "dev", submission=used):
                pass
    assert raised.value.errno == errno.EADDRINUSE


# -- handshakes that fail
@pytest.fixture(scope="module")
def kit() -> Iterator[Relay]:
    with Relay() as relay:
        yield relay


def logged_by(kit, work):
    """Return the line that the relay logs for what a client does."""
    log = kit.running.folder.path / LOG_NAME
    before = log.stat().st_size
    work()
    until("it is logged", lambda: log.stat().st_size > before)
    kit.settle()
    [line] = log.read_bytes()[before:].decode().splitlines()
    assert "level=warning" in line
    assert "client=127.0.0.1" in line
    return line


@pytest.mark.parametrize("port", ["submission", "submissions"])
def test_a_client_that_does_not_know_the_authority_gets_its_file_in_the_log(kit, port):
    strangers = ssl.create_default_context()

    def shake_hands():
        if port == "submissions":
            smtplib.SMTP_SSL("localhost", kit.submissions.port, timeout=120, context=strangers)
        with smtplib.SMTP("localhost", kit.submission.port, timeout=120) as session:
            session.starttls(context=strangers)

    def fail():
        with pytest.raises(ssl.SSLCertVerificationError):
            shake_hands()

    line = logged_by(kit, fail)
    assert 'event="TLS handshake failed"' in line
    assert "UNKNOWN_CA" in line
    assert f'hint="clients must trust the CA file {kit.ca}; ' in line


async def test_a_handshake_that_does_not_end_does_not_delay_the_stop(short_path):
    async with running(short_path / "dev") as relay:
        at = relay.addresses.submissions
        silent = socket.create_connection((at.host, at.port), timeout=120)
        await Session(relay, "submissions").send()  # the other one is accepted by now
    with silent:
        assert silent.recv(1) == b""
