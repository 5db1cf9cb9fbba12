"""What sessions record of refusals: one record for each refused command, with its reason."""

import asyncio
import base64
import ssl
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from relay.base.accounts.account import LoginDelayedError
from relay.base.pressure import PressureLevel, PressureReason, PressureState
from relay.base.socket_address import Address
from relay.store.spool.types import SpoolUnavailableError
from relay.transport.ingress.listener_role import PICKUP
from relay.transport.ingress.session_limits import SessionLimits
from relay.transport.policy.rule_book import RuleBook
from relay.transport.policy.rule_files import read_rules
from tests.support.events import until
from tests.support.ingress import Client, Relay
from tests.support.logs import capture_logs
from tests.support.manual_clock import ManualClock
from tests.support.tables import each_row

REFUSE = PressureLevel.REFUSE
ALICE = base64.b64encode(b"\0alice@example.test\0alice").decode()


@pytest.fixture(autouse=True)
async def closed_clients():
    yield
    while Client.opened:
        Client.opened.pop().writer.close()


@asynccontextmanager
async def session(relay: Relay, **changes):
    """A client that was greeted; at the end all its refusals are recorded."""
    server = relay.server(**changes)
    await server.start()
    client = await Client.connect(server.address)
    await client.reply()
    try:
        yield client
    finally:
        while Client.opened:
            Client.opened.pop().writer.close()
        await server.drain(1)


def counted(relay: Relay, name: str, **labels) -> float:
    return relay.metrics.registry.get_sample_value(name, labels) or 0.0


EHLO = "EHLO client.test"
FROM = "MAIL FROM:<app@example.test>"
TO = "RCPT TO:<bob@example.test>"
TRUSTED = {"trusted_networks": ("127.0.0.0/8",)}
STRANGER = {"trusted_networks": ()}
SUBMISSION = {"role": "submission", "trusted_networks": ()}
AUTH = f"AUTH PLAIN {ALICE}"

CASES = [
    # unknown recipient
    (TRUSTED, [EHLO, FROM, "RCPT TO:<nobody@example.test>"], "recipient", "RCPT"),
    (STRANGER, [EHLO, FROM, "RCPT TO:<x@elsewhere.test>"], "recipient", "RCPT"),  # relaying
    # a route that rejects
    (TRUSTED, [EHLO, FROM, "RCPT TO:<x@refused.test>"], "recipient", "RCPT"),
    (TRUSTED, [EHLO, FROM, "RCPT TO:<full@example.test>"], "recipient", "RCPT"),  # a full mailbox
    # larger than a mailbox
    (TRUSTED, [EHLO, f"{FROM} SIZE=2000", "RCPT TO:<small@example.test>"], "size", "RCPT"),
    (TRUSTED, [EHLO, FROM, "DATA"], "recipient", "DATA"),  # no valid recipient
    # another's sender
    (SUBMISSION, [EHLO, AUTH, "MAIL FROM:<bob@example.test>"], "sender", "MAIL"),
    (SUBMISSION, [EHLO, FROM], "login", "MAIL"),  # no login
    # a wrong password
    (TRUSTED, [EHLO, "AUTH PLAIN AGFsaWNlQGV4YW1wbGUudGVzdAB3cm9uZw=="], "login", "AUTH"),
    (TRUSTED, [EHLO, "AUTH PLAIN !"], "syntax", "AUTH"),  # not base64
    (TRUSTED, [EHLO, f"{FROM} SIZE=999999999999"], "size", "MAIL"),  # too large
    (TRUSTED, [EHLO, f"{FROM} NO=1"], "syntax", "MAIL"),  # a parameter
    (TRUSTED, [EHLO, "MAIL FROM:<a..b@example.test>"], "syntax", "MAIL"),  # an address
    (TRUSTED, [EHLO, TO], "syntax", "RCPT"),  # the order
    (TRUSTED, ["SESAME open"], "syntax", ""),  # an unknown command
    (TRUSTED, ["GET / HTTP/1.1"], "syntax", "GET"),  # HTTP
    (TRUSTED, ["NOOP " + "x" * 20_000], "syntax", ""),  # a long line
    # too many recipients
    (
        TRUSTED | {"max_recipients": 1},
        [EHLO, FROM, TO, "RCPT TO:<alice@example.test>"],
        "limit",
        "RCPT",
    ),
    # too many messages
    (STRANGER | {"max_rate_per_client": "0/60.0"}, [EHLO, FROM], "limit", "MAIL"),
    (TRUSTED | {"max_errors": 0}, ["SESAME"], "limit", ""),  # too many errors
    (TRUSTED, [EHLO, "VRFY"], "syntax", "VRFY"),  # VRFY without an argument
    (TRUSTED, [EHLO, "STARTTLS"], "syntax", "STARTTLS"),  # STARTTLS without TLS
]


@each_row("listener, said, reason, command", CASES)
async def test_a_refused_command_is_one_record(listener, said, reason, command):
    relay = Relay()
    async with session(relay, **listener) as client:
        replies = await client.say_all(*said)
        assert replies[-1][:1] in "45"
        assert not any(one[:1] in "45" for one in replies[:-1])
    (one,) = relay.refused
    assert (one.reason, one.command, one.reply, one.times) == (reason, command, replies[-1], 1)
    assert one.client == "127.0.0.1"
    assert one.helo == ("client.test" if EHLO in said else "")
    assert one.listener.startswith("127.0.0.1:")
    assert not one.listener.endswith(":0")
    assert one.at == "2023-11-14T22:13:20.000000Z"
    assert counted(relay, "relay_smtp_refusals_total", reason=reason) == 1
    is_login = reason == "login" and command == "AUTH"
    assert counted(relay, "relay_auth_failures_total") == is_login


async def test_tls_that_is_missing_is_a_refusal(relay, certificate):
    async with session(relay, tls=replace(certificate, require=True)) as client:
        await client.say(EHLO)
        assert (await client.say(FROM))[:3] == "530"
    async with session(relay, role="submission", tls=certificate) as client:
        client.writer.write(b"\x16\x03\x01\x02\x00")
        assert (await client.reply())[:3] == "554"
    assert [(one.command, one.reason) for one in relay.refused] == [
        ("MAIL", "tls"),
        ("CONNECT", "tls"),
    ]


async def test_a_rule_that_refuses_is_named_with_sender_recipients_and_subject(relay, tmp_path):
    rule = '[[rule]]\nname = "no executables"\nthen = [ { reject = "5.7.1 Not that" } ]\n'
    (tmp_path / "10.toml").write_text(rule)
    relay.rules = RuleBook(read_rules(tmp_path))
    async with session(relay) as client:
        with capture_logs() as logged:
            await client.say_all(EHLO, FROM, TO, "RCPT TO:<ann@customer.example>", "DATA")
            subject = "=?utf-8?q?Setup=1b=5b31m_pr=0agram?= \x07" + "x" * 5000
            reply = await client.say(f"Subject: {subject}\r\n\r\nsecret body\r\n.")
            assert reply == "550 5.7.1 Not that"
    (one,) = relay.refused
    assert (one.reason, one.rule, one.command, one.reply) == (
        "rule",
        "no executables",
        "DATA",
        reply,
    )
    assert (one.sender, one.recipient_count) == ("app@example.test", 2)
    assert one.recipients == ("bob@example.test", "ann@customer.example")
    assert one.subject.startswith("Setup [31m pr gram")
    assert one.subject.isprintable()
    assert len(one.subject) <= 200
    (line,) = [line for line in logged if line["event"] == "rejected"]
    assert (line["rule"], line["sender"], line["subject"]) == (one.rule, one.sender, one.subject)
    assert (line["recipient"], line["recipients"]) == ("bob@example.test", 2)


BROKEN = {
    "a bare LF": ("Subject: hello\r\n\r\na\nb\r\n.", "syntax", "hello"),
    "a long line": ("Subject: hello\r\nX: " + "a" * 70_000 + "\r\n.", "syntax", "hello"),
    "a loop": ("Subject: hello\r\n" + "Received: x\r\n" * 101 + "\r\nx\r\n.", "limit", "hello"),
    "too large": ("Subject: hello\r\n\r\n" + "text\r\n" * 2000 + ".", "size", "hello"),
    "no header": ("text\nwithout\r\n.", "syntax", ""),
}


@pytest.mark.parametrize(("content", "reason", "subject"), BROKEN.values(), ids=BROKEN)
async def test_a_content_that_is_refused_has_its_subject(relay, content, reason, subject):
    async with session(relay, max_message_size=100_000 if "70" else 0) as client:
        await client.say_all(EHLO, FROM, TO, "DATA")
        if reason == "size":
            content = content.replace("text\r\n" * 2000, "text\r\n" * 20_000)
        assert (await client.say(content))[:1] in "45"
    (one,) = relay.refused
    assert (one.reason, one.subject, one.command) == (reason, subject, "DATA")
    assert one.recipients == ("bob@example.test",)


async def test_a_sender_field_that_is_not_allowed_is_a_sender(relay):
    async with session(relay) as client:
        await client.say_all(EHLO, AUTH, "MAIL FROM:<alice@example.test>", TO, "DATA")
        assert (await client.say("From: bob@example.test\r\n\r\nx\r\n."))[:3] == "553"
    (one,) = relay.refused
    assert (one.reason, one.account) == ("sender", "alice@example.test")


async def test_recipients_of_a_transaction_with_the_same_reply_are_one_record(relay):
    async with session(relay) as client:
        with capture_logs() as logged:
            await client.say_all(EHLO, FROM)
            for number in range(15):
                reply = await client.say(f"RCPT TO:<no{number}@example.test>")
                assert f"no{number}@" in reply
            await client.say_all(
                TO, "RCPT TO:<x@refused.test>", "RSET", FROM, "RCPT TO:<no@example.test>"
            )
    many, route, second = relay.refused
    assert many.recipients == tuple(f"no{number}@example.test" for number in range(10))
    assert many.recipient_count == 15
    assert many.reply.startswith("550 5.1.1 <no0@example.test>")
    assert (route.recipients, route.recipient_count) == (("x@refused.test",), 1)
    assert second.recipients == ("no@example.test",)
    assert counted(relay, "relay_smtp_refusals_total", reason="recipient") == 3
    assert [line.get("recipients") for line in logged if line["event"] == "rejected"] == [
        15,
        None,
    ]  # the third is logged at the end


async def test_different_replies_to_a_transaction_are_bounded(relay):
    async with session(relay, max_recipients=5) as client:
        await client.say_all(EHLO, FROM)
        for number in range(50):
            await client.say(f"RCPT TO:<x@h{number}>")
            await client.say(f"RCPT TO:<x{number}@refused.test> NO{number}=1")
    assert sum(one.recipient_count for one in relay.refused) == 95


async def test_a_login_that_failed_is_recorded_with_the_user_name_alone(relay):
    user, password = "u\r\n\0"[:3] + "n" * 10_000, "pass" * 10
    secret = base64.b64encode(password.encode()).decode()
    async with session(relay, limits=SessionLimits(auth_failure_delay_s=0.0)) as client:
        with capture_logs() as logged:
            await client.say(EHLO)
            assert (await client.say("AUTH LOGIN"))[:3] == "334"
            sent = base64.b64encode(user.encode()).decode()
            assert (await client.say(sent))[:3] == "500"  # longer than a line of AUTH
            assert (await client.say(secret))[:3] == "500"  # is no command
            name = base64.b64encode(("u\r\n" + "n" * 5000).encode()).decode()
            assert (await client.say(f"AUTH LOGIN {name}"))[:3] == "334"
            assert (await client.say(secret))[:3] == "535"
    first, second, third = relay.refused
    assert (first.command, second.command, third.command) == ("AUTH", "", "AUTH")
    assert (third.reason, third.account) == ("login", "u  " + "n" * 97)
    everything = repr((relay.refused, logged))
    assert password not in everything
    assert secret not in everything
    assert sent not in everything
    assert name not in everything


async def test_a_connection_that_is_refused_is_recorded(relay):
    async with session(relay, max_sessions=1) as client:
        second = await Client.connect(Address(*client.writer.get_extra_info("peername")))
        assert (await second.reply())[:9] == "421 4.7.0"
    relay.pressure.state = PressureState({PressureReason.QUEUE: PressureLevel.REFUSE})
    async with session(relay, **STRANGER):
        pass
    assert [(one.command, one.reason) for one in relay.refused] == [
        ("CONNECT", "limit"),
        ("CONNECT", "pressure"),
    ]
    assert counted(relay, "relay_smtp_sessions_total", role="relay") == 3


async def test_clients_cannot_fill_the_log_but_each_failed_login_has_its_line(relay):
    clock, wrong = ManualClock(), "AUTH PLAIN AGFsaWNlQGV4YW1wbGUudGVzdAB3cm9uZw=="
    with capture_logs(clock) as logged:
        for seconds, count in ((0, 5), (0.9, 3), (0.2, 1)):
            clock.advance(seconds)
            for _ in range(count):
                relay.spool.fault = SpoolUnavailableError("its disk is away")
                async with session(relay, max_sessions=1) as client:
                    full = await Client.connect(Address(*client.writer.get_extra_info("peername")))
                    assert (await full.reply())[:9] == "421 4.7.0"
                    await client.say_all(EHLO, FROM, TO, "DATA")
                    assert (await client.say("\r\nx\r\n."))[:9] == "451 4.3.0"
                    assert (await client.say(wrong))[:3] == "535"
                    assert (await client.say("MAIL FROM:<a..b@example.test>"))[:3] == "501"
                    relay.pressure.state = PressureState({PressureReason.QUEUE: REFUSE})
                    assert (await client.say(FROM))[:3] == "452"
                    relay.pressure.state = PressureState({})
    lines = {}
    for line in logged:
        if line["event"] == "bound is full":  # once a minute, also for other tests
            continue
        what = (line["event"], line.get("verb"), line.get("reason"))
        lines.setdefault(what, []).append(line.get("times", 1))
    assert lines == {
        ("rejected", "CONNECT", "limit"): [1, 8],
        ("spool unavailable", None, None): [1, 8],
        ("rejected", "DATA", "pressure"): [1, 8],
        ("rejected", "MAIL", "pressure"): [1, 8],
        ("rejected", "AUTH", "login"): [1] * 9,
        ("rejected", "MAIL", "syntax"): [1] * 9,
    }


async def test_what_relay_is_unable_to_do_has_one_line_a_second(relay):
    async def away(_user, _password, *, client):
        raise LoginDelayedError("The login could not be checked", 1.0)

    relay.accounts.by_smtp_login, clock = away, ManualClock()
    async with session(relay) as client, session(relay) as other:
        await other.say(EHLO)
        await client.say_all(EHLO, FROM)
        with capture_logs(clock) as logged:
            for seconds in (0, 0, 0, 1):
                clock.advance(seconds)
                assert (await client.say("RCPT TO:<full@example.test>"))[:9] == "452 4.2.2"
                await client.say_all("RSET", FROM)
                login = await other.say("AUTH PLAIN AGFsaWNlQGV4YW1wbGUudGVzdAB3cm9uZw==")
                assert login.startswith("454 4.7.0 The login could not be checked")
    assert [(line["verb"], line.get("times", 1)) for line in logged] == [
        ("RCPT", 1),
        ("AUTH", 1),
        ("RCPT", 3),
        ("AUTH", 3),
    ]


async def test_pickup_records_nothing(relay, tmp_path):
    async with session(
        relay, listener_role=PICKUP, listen=Address(path=str(tmp_path / "s"))
    ) as client:
        assert (await client.say("SESAME"))[:3] == "500"
    assert relay.refused == []
    assert counted(relay, "relay_smtp_sessions_total", role="relay") == 0


def distrusting() -> ssl.SSLContext:
    return ssl.create_default_context()


async def test_a_handshake_that_fails_is_recorded(relay, certificate):
    server = relay.server(role="submissions", tls=certificate)
    await server.start()
    with pytest.raises(ssl.SSLError):
        await Client.connect(server.address, ssl=distrusting(), server_hostname="localhost")
    await until(lambda: relay.refused)
    plain = await Client.connect(server.address)
    plain.writer.write(b"EHLO client.test\r\n")
    assert await plain.reply() == ""
    looks = await Client.connect(server.address)
    looks.writer.close()
    await until(lambda: len(relay.refused) == 2)
    await server.drain(1)
    first, second = relay.refused
    assert (first.reason, first.command, first.client) == ("tls", "CONNECT", "127.0.0.1")
    assert first.reply.startswith("TLS handshake failed: the client disconnected")  # no alert
    assert second.reply == "TLS handshake failed: wrong version number"
    assert counted(relay, "relay_smtp_sessions_total", role="submissions") == 0


async def test_sessions_over_tls_work_and_handshakes_end_with_the_server(relay, certificate):
    accepting = ssl.create_default_context()
    accepting.check_hostname, accepting.verify_mode = False, ssl.CERT_NONE
    server = relay.server(role="submissions", tls=certificate)
    await server.start()
    silent = await Client.connect(server.address)
    client = await Client.connect(server.address, ssl=accepting)
    assert (await client.reply())[:3] == "220"
    assert (await client.say("NOOP"))[:3] == "250"
    await asyncio.wait_for(server.drain(0.1), 120)
    assert (await client.reply())[:3] == "421"
    assert await silent.reply() == ""
    assert relay.refused == []
    with pytest.raises(OSError):
        await Client.connect(server.address)
