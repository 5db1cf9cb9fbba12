"""Logins with a token in place of a password, at the SMTP listener of a relay."""

import asyncio
from base64 import b64decode, b64encode
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from relay.base.message.envelope import Envelope, ForwardPath
from relay.base.message.nexthop import HopKind
from relay.base.message.outcome import DeferralClass, Deferred, SmtpStage
from relay.base.message.tls_policy import TlsPolicy
from relay.base.settings.tree import OAuthClient
from relay.delivery.provider_replies import load_provider_replies
from relay.delivery.smtp.connect import ConnectError, Target, TokenError, connect
from relay.delivery.smtp.connection import Timeouts
from relay.delivery.smtp.transaction import Transaction
from relay.transport.routing.routes import Credentials
from tests.support.ingress import Relay

LOGIN = Credentials("alice@example.test", oauth="m365")
BASIC = "exchange-online-basic-authentication"
GOOD, ENDED, OTHER = "token", "a-token-that-has-ended", "another-that-is-unknown"


class Tokens:
    """Gives these tokens in their order, then none; keeps which ones were refused."""

    def __init__(self, *tokens: str) -> None:
        self.left, self.refused = [*tokens], []

    async def get(self, login: Credentials, use: HopKind, refused: str) -> str:
        assert (login, use) == (LOGIN, HopKind.SMTP)
        self.refused.append(refused)
        if not self.left:
            raise TokenError(
                "login.test: invalid_grant AADSTS50173; sign in: relay oauth login m365"
            )
        return self.left.pop(0)


@pytest.fixture
async def target():
    server = Relay().server(trusted_networks=())
    await server.start()
    yield Target("localhost", "127.0.0.1", server.address.port, login=LOGIN, tls=TlsPolicy("none"))
    await server.drain(0.5)


async def session(target, tokens):
    return await connect(target, ehlo_name="x.test", timeouts=Timeouts(), get_token=tokens.get)


async def refusal(target, tokens):
    with pytest.raises(ConnectError) as caught:
        await session(target, tokens)
    error, outcome = caught.value, caught.value.outcome
    assert isinstance(outcome, Deferred)
    for token in (ENDED, OTHER):
        assert token not in outcome.evidence.reply
    if error.stage is SmtpStage.AUTH:
        assert (outcome.kind, outcome.evidence.status) == (DeferralClass.AUTH, "4.7.8")
    return error.stage, outcome.evidence.reply


async def test_a_token_that_has_ended_is_replaced_in_the_session(target):
    for given, refused in (([GOOD], [""]), ([ENDED, GOOD], ["", ENDED])):
        tokens = Tokens(*given)
        connection = await session(target, tokens)
        assert connection.is_open
        assert tokens.refused == refused
        await connection.quit()


async def test_a_refusal_has_the_words_of_the_host_and_the_next_step(target):
    stage, reply = await refusal(target, Tokens(ENDED, OTHER))
    why = "(status 401, schemes bearer, scope SMTP.Send)"
    step = "relay oauth test m365 shows what the token is for"
    assert reply == f"535 5.7.8 Token is not known here {why}; {step}"
    assert stage is SmtpStage.AUTH
    _, reply = await refusal(target, Tokens(ENDED))
    assert f"535 5.7.8 Token is not known here {why}" in reply
    assert "AADSTS50173; sign in: relay oauth login m365" in reply


async def test_without_a_token_there_is_no_connection():
    stage, reply = await refusal(Target("localhost", "127.0.0.1", 1, login=LOGIN), Tokens())
    assert (stage, "AADSTS50173" in reply) == (SmtpStage.AUTH, True)


@asynccontextmanager
async def serving(host, login=LOGIN):
    """Serve the host while a test uses its target."""
    async with await asyncio.start_server(host.converse, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        yield Target("localhost", "127.0.0.1", port, login=login, tls=TlsPolicy("none"))


class Host:
    """A host that answers AUTH with `reply`, once if it hangs up then."""

    def __init__(self, reply: str, hangs_up: bool = False) -> None:
        self.reply, self.lines, self.hangs_up = reply, [], hangs_up

    async def converse(self, reader, writer):
        writer.write(b"220 mx.test\r\n")
        while octets := await reader.readline():
            self.lines.append(line := octets.decode().strip() or "(empty)")
            auth = self.reply.format(line) if line.startswith("AUTH") else "535 5.7.8 after (empty)"
            said = "250-mx\r\n250 AUTH XOAUTH2" if line.startswith("EHLO") else auth
            writer.write(f"{said}\r\n".encode(errors="surrogateescape"))
            if self.hangs_up and line.startswith("AUTH"):
                break
        writer.close()


@pytest.mark.parametrize("given", [(ENDED,), (ENDED, OTHER)])
@pytest.mark.parametrize("hangs_up", [False, True])
async def test_what_a_provider_says_at_auth_counts_whatever_became_of_a_second_token(
    given, hangs_up
):
    host = Host("550 5.7.30 Basic authentication is not supported", hangs_up)
    async with serving(host) as target:
        with pytest.raises(ConnectError) as caught:
            await session(target, Tokens(*given))
    for more, name in (
        ({"provider": "microsoft"}, BASIC),
        ({"token_url": "https://eu.login.microsoftonline.us/x"}, BASIC),
        ({"token_url": "https://login.microsoft.com.other.test/x"}, ""),
        ({"provider": "microsoft", "name": "other"}, ""),
    ):
        client = OAuthClient(**{"name": "m365", **more})
        replies = load_provider_replies(None, Path("relay.toml"), [client])
        assert replies.judged(caught.value.outcome, LOGIN).evidence.provider == name


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("454 4.7.0 Temporary authentication failure", "454 4.7.0 Temporary"),
        ("334 bm8ganNvbg==", "535 5.7.8 after (empty); relay oauth"),
        ("334 W10=", "535 5.7.8 after (empty); relay oauth"),
        ("535 5.7.3 Authentication unsuccessful", "535 5.7.3 Authentication unsuccessful; relay"),
        ("535 5.7.3 no: {}", "535 5.7.3 no: AUTH XOAUTH2 ...; relay"),
        ("535 5.7.3 refus\udce9", "535 5.7.3 refus?; relay"),  # not UTF-8
        ("250 what", "is no answer to AUTH"),
    ],
)
async def test_a_host_that_answers_otherwise_defers(reply, expected):
    host = Host(reply)
    async with serving(host) as target:
        tokens = Tokens(ENDED, OTHER)
        stage, text = await refusal(target, tokens)
        assert (stage, expected in text) == (SmtpStage.AUTH, True), text
        assert len(tokens.refused) == (2 if "535" in expected else 1)
        assert ("(empty)" in host.lines) == reply.startswith("334")
        host.lines = []
        away = replace(target, host="mx.test")  # no name of loopback's
        stage, text = await refusal(away, Tokens(ENDED))
        assert (stage, "is not sent without TLS" in text) == (SmtpStage.STARTTLS, True)
        assert not [line for line in host.lines if line.startswith("AUTH")]


class Echo:
    """A host that repeats what AUTH has told it: in JSON when it refuses a first token, and at MAIL."""

    def __init__(self, offers: str) -> None:
        self.offers, self.told = offers, list[str]()

    def answer(self, line: str) -> str:
        verb, _, rest = line.partition(" ")
        if verb == "EHLO":
            return f"250-mx\r\n250 AUTH {self.offers}"
        if verb == "MAIL":
            return f"550 5.7.1 you sent {' and '.join(self.told)}, or {self.told[-1][:-2]}"
        if not line:
            return "535 5.7.8 no"
        sent = rest.split(" ")[-1] or line
        text = b64decode(sent).decode().strip("\1")
        self.told += (sent, text.split("\0")[-1].split(" ")[-1])
        if self.offers == "LOGIN" and not self.told[2:]:
            return "334 UGFzc3dvcmQ6"
        if self.offers == "XOAUTH2" and not self.told[2:]:
            escaped = "".join(f"\\u{ord(letter):04x}" for letter in self.told[1])
            words = b64encode(f'{{"you": "{escaped}"}}'.encode())
            return f"334 {words.decode()}"
        return "235 2.7.0 ok"

    async def converse(self, reader, writer):
        writer.write(b"220 mx.test\r\n")
        while octets := await reader.readline():
            writer.write(f"{self.answer(octets.decode().strip())}\r\n".encode())
        writer.close()


@pytest.mark.parametrize("offers", ["PLAIN", "LOGIN", "XOAUTH2"])
async def test_no_evidence_repeats_what_the_login_has_sent(offers):
    host, secret = Echo(offers), "a-password+of-a-route"
    login = LOGIN if offers == "XOAUTH2" else Credentials("alice@example.test", secret)
    async with serving(host, login) as target:
        if offers == "XOAUTH2":
            _, reply = await refusal(target, Tokens("a-token-that-is-refused"))
            assert "(you ...); relay oauth" in reply
        connection = await session(target, Tokens("a-first-token-of-a-login"))
        paths = (ForwardPath("x@x.test"),)
        result = await connection.transact(Transaction(Envelope("a@a.test"), paths, b"x\r\n"))
        connection.close()
    reply = result.outcomes[0].evidence.reply
    assert reply.startswith("550 5.7.1 you sent ")
    assert reply.endswith(" and ..., or ...")
    assert not [text for text in host.told[-2:] if text[:16] in reply]
