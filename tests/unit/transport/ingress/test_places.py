"""The places of sessions: who gets one beside attackers, who loses one, and what is no silence.

The time of a session passes as if its client had been silent.
"""

import asyncio
from base64 import b64encode

import pytest

from relay.transport.ingress.listener_role import SENDMAIL
from relay.transport.ingress.session_client import SessionPlace
from tests.support.events import until
from tests.support.ingress import Client, inside

ONE, TWO, THREE, FOUR, FIVE = (f"127.1.0.{n}" for n in range(1, 6))
MAIL, BOB, ALICE = (
    "MAIL FROM:<a@other.test>",
    "RCPT TO:<bob@example.test>",
    "RCPT TO:<alice@example.test>",
)
END = "Subject: x\r\n\r\nx\r\n."
MESSAGE, SENT = (MAIL, BOB, "DATA", END), ["250", "250", "354", "250"]
KIB_10 = "x" * 62 + "\r\n" + ("x" * 1022 + "\r\n") * 10
CROWDED = "421 4.4.2 Many clients wait for a session, closing yours"
REFUSALS = (
    "421 4.7.0 Too many sessions at once, try again later",
    "421 4.7.0 Too many sessions with a login, try again later",
)
# the listener, its `max_sessions` for so many places, and the clients: an address, or an account
TRUSTED = ({"trusted_networks": ("127.0.0.0/8",)}, 2, (ONE, TWO, THREE, FOUR, FIVE))
STRANGERS = ({"trusted_networks": ()}, 1, (ONE, TWO, THREE, FOUR, FIVE))
LOGINS = ({"role": "submission"}, 2, ("alice", "bob", "full", "small", "eve"))
KINDS = pytest.mark.parametrize(
    "kind", [TRUSTED, STRANGERS, LOGINS], ids=["trusted", "strangers", "logins"]
)


class Visitor:
    """A client and its session."""

    def __init__(self, client: Client, session) -> None:
        self.client, self.session, self._octets = client, session, 0
        self._take, session._input.take_all = session._input.take_all, self._arrived

    async def codes(self, *lines: str) -> list[str]:
        return [reply[:3] for reply in await self.client.say_all(*lines)]

    async def send(self, octets: str) -> None:
        before = self._octets
        self.client.writer.write(octets.encode())
        await until(lambda: self._octets == before + len(octets))

    def _arrived(self, at_most: int) -> bytes:
        octets = self._take(at_most)
        self._octets += len(octets)
        return octets

    def silent(self, seconds: float, *, looks: bool = True) -> None:
        """Let time pass; with `looks`, to the next look of the session's timer."""
        self.session._waited_s += seconds
        if looks:
            self.session._timeout_cb()

    @property
    def is_open(self) -> bool:
        return not self.session._transport_of().is_closing()

    async def last_reply(self) -> str:
        reply = await self.client.reply()
        assert await self.client.reply() == ""
        return reply


async def visit(server, who: str = ONE) -> Visitor | None:
    """A session of an address or an account that has said EHLO, None if it got no place."""
    before = set(inside(server).shared.places.sessions)
    address = who if who[0] == "1" else ONE
    client = await Client.connect(server.address, local_addr=(address, 0))
    reply = await client.reply()
    if reply.startswith("220 "):
        await client.say("EHLO client.test")
        if who != address:
            words = b64encode(f"\0{who}@example.test\0{who}".encode()).decode()
            reply = await client.say(f"AUTH PLAIN {words}")
    if reply.startswith("421"):
        assert reply in REFUSALS
        return None
    [session] = inside(server).shared.places.sessions - before
    return Visitor(client, session)


def message_of(who: str) -> tuple[str, ...]:
    return MESSAGE if who[0] == "1" else (f"MAIL FROM:<{who}@example.test>", *MESSAGE[1:])


async def all_of(server, who: str) -> list[Visitor]:
    taken = []
    while (one := await visit(server, who)) is not None:
        taken.append(one)
    return taken


@pytest.mark.parametrize(
    ("before", "action", "is_progress"),
    [
        ((), "NOOP", False),
        ((), "RSET", False),
        ((), "VRFY bob", False),
        ((), "HELP", False),
        ((), "EHLO client.test", False),
        ((), "MAIL FROM:<>", True),
        ((), "MAIL FROM:<a..b@other.test>", False),
        ((MAIL, BOB), ALICE, True),
        ((MAIL, BOB), BOB, False),
        ((MAIL, BOB), "RCPT TO:<nobody@example.test>", False),
        ((MAIL, BOB), "BDAT 0", False),
        ((MAIL, BOB), "DATA", True),
        ((MAIL, BOB, "DATA"), "x", False),
        ((MAIL, BOB, "DATA"), KIB_10, True),
        ((MAIL, BOB, "DATA"), END, True),
    ],
)
async def test_a_stranger_without_progress_leaves_when_half_of_the_places_are_taken(
    listening, before, action, is_progress
):
    calm, crowded = [await listening(max_sessions=n, trusted_networks=()) for n in (5, 4)]
    patient, _, one = await visit(calm), await visit(crowded, TWO), await visit(crowded)
    await one.codes(*before)
    one.silent(6)
    if "DATA" in before and action != END:
        await one.send(action)
    else:
        await one.codes(action)
    one.silent(6)
    assert one.is_open is is_progress
    patient.silent(100)
    assert patient.is_open
    if not is_progress:
        assert await one.last_reply() == CROWDED


async def test_only_so_many_strangers_leave_that_half_of_the_places_are_free(listening):
    server = await listening(max_sessions=6, trusted_networks=())
    sessions = [await visit(server, one) for one in (ONE, TWO, THREE, FOUR)]
    shared = inside(server).shared
    assert shared.handshake_s() == 10
    for one in sessions:
        one.silent(11)
    assert [one.is_open for one in sessions] == [False, False, True, True]
    assert shared.handshake_s() == 30


async def test_a_content_is_progress_with_ten_kib_in_ten_seconds(listening):
    server = await listening(max_sessions=4, trusted_networks=())
    one = await visit(server)
    await one.codes(*MESSAGE[:3])
    one.silent(50)
    for _ in range(2):  # the first ones are late
        await one.send(KIB_10)
    other = await visit(server, TWO)
    for _ in range(2):
        one.silent(9)
        await one.send(KIB_10)
    one.silent(9)
    assert (await one.client.say("."))[:3] == "250"
    await other.codes(*MESSAGE[:3])
    other.silent(9)
    await other.send(KIB_10[:9000])
    other.silent(2)
    assert await other.last_reply() == CROWDED


@KINDS
async def test_time_in_which_relay_owes_the_reply_is_no_silence(relay, listening, kind):
    settings, part, (who, other, newcomer, *_) = kind
    server = await listening(**settings, max_sessions=2 // part)
    relay.spool.gate = asyncio.Event()
    one, two = await visit(server, who), await visit(server, other)
    await one.codes(*message_of(who)[:3])
    one.client.writer.write(f"{END}\r\n".encode())
    await relay.spool.committing.wait()
    two.session._mail_s = 0.0
    one.silent(100)
    assert await visit(server, newcomer) is None
    relay.spool.gate.set()
    assert (await one.client.reply())[:3] == "250"


@KINDS
async def test_who_comes_when_all_is_taken_gets_the_place_of_who_has_most(relay, listening, kind):
    relay.accounts.names = (*relay.accounts.names, "eve")
    settings, part, (who, other, third, newcomer, last) = kind
    server = await listening(**settings, max_sessions=4 // part)
    first, second, only, _ = [await visit(server, x) for x in (who, who, other, third)]
    for one, seconds in ((first, 70), (second, 61), (only, 1000)):
        one.silent(seconds, looks=False)
    assert await visit(server, newcomer)
    assert await first.last_reply() == CROWDED
    assert await visit(server, who)  # in place of its own
    assert await second.last_reply() == CROWDED
    latest = await visit(server, last)
    assert await only.last_reply() == CROWDED
    latest.silent(100, looks=False)
    assert await visit(server, newcomer) is None  # which has as much
    assert await visit(server, other)
    assert await visit(server, last) is None
    assert server.sessions == 4


@pytest.mark.parametrize(
    ("lines", "gives_way"),
    [
        (("NOOP",), True),
        (("EHLO client.test",), True),
        (("RSET", MAIL, BOB), True),
        ((MAIL, BOB, "DATA", KIB_10[:9000]), True),
        ((MAIL, BOB, "DATA", KIB_10), False),
        (MESSAGE, False),
    ],
)
async def test_only_mail_keeps_a_place_that_a_newcomer_needs(listening, lines, gives_way):
    server = await listening(**TRUSTED[0], max_sessions=1)
    one, _ = await visit(server), await visit(server, TWO)
    one.silent(40)
    for line in lines:
        if line in KIB_10:
            await one.send(line)
        else:
            await one.codes(line)
    one.silent(30)
    assert bool(await visit(server, THREE)) is gives_way


@KINDS
@pytest.mark.parametrize("attackers", [1, 2])
async def test_who_holds_all_that_it_gets_keeps_nobody_out(relay, listening, kind, attackers):
    settings, part, who = kind
    server = await listening(**settings, max_sessions=24 // part, max_sessions_per_client=99)
    held = [await all_of(server, one) for one in who[:attackers]]
    assert [len(each) for each in held] == [12, 6][:attackers]
    for _ in range(10):
        for tenant in who[2:4]:
            one = await visit(server, tenant)
            assert await one.codes(*message_of(tenant), "QUIT") == [*SENT, "221"]
    assert len(relay.spool.accepted) == 20


async def test_honest_clients_with_many_sessions_keep_them(relay, listening):
    """200 connections of one address; a kept connection, idle between messages, with NOOP."""
    server = await listening(**TRUSTED[0])
    crowd = [await visit(server) for _ in range(200)]
    sent = await asyncio.gather(*(one.codes(*MESSAGE) for one in crowd))
    assert sent == [SENT] * 200
    server = await listening(max_sessions=4, trusted_networks=())
    kept, _ = await visit(server), await visit(server, TWO)
    for _ in range(20):
        kept.silent(5)
        assert await kept.codes("NOOP", *MESSAGE) == ["250", *SENT]


async def test_a_user_of_this_machine_has_a_share(relay):
    owner = relay.server(listener_role=SENDMAIL)._owner("")
    users = [owner.client(uid).place for uid in (None, 0, 1000)]
    assert [(x.kind, x.key) for x in users] == [
        ("trusted", None),
        ("trusted", "uid 0"),
        ("trusted", "uid 1000"),
    ]
    assert users[2] == SessionPlace("trusted", "uid 1000", ("uid 1000",))
