"""Milters in SMTP sessions and in played ones: their replies, what they change, and the journey."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import product
from pathlib import Path

import pytest
from msgspec import to_builtins

from relay.base.message.content import read_all
from relay.base.message.lifecycle import RecipientState
from relay.base.settings.tree import Milter
from relay.base.settings.values import parse_address
from relay.transport.ingress import listener_role
from relay.transport.ingress.data import Origin
from relay.transport.ingress.local_users import LocalUser
from relay.transport.milter import connection
from relay.transport.policy.rule_files import load_rules
from relay.transport.refusals.refusal import RefusalReason
from tests.support.events import until
from tests.support.ingress import Client, Relay, inside
from tests.support.milter import CLOSE, ScriptedMilter, added, packet, placed
from tests.support.tables import each_row
from tests.unit.transport.ingress.test_acceptance import accept, envelope

PICKUP = Origin(ip="", helo="relay", trusted=True, role=listener_role.PICKUP)
USER = LocalUser("ann", "ann@relay.example.test", any_sender=True)
PROGRAM = Origin(ip="", helo="ann", trusted=True, role=listener_role.SENDMAIL, user=USER)
BODY = "From: a@other.test\r\nSubject: one\r\nBcc: x@y.test\r\n\r\ntext\r\n.\r\n"
LINES = [
    "EHLO client.test",
    "MAIL FROM:<a@other.test> SIZE=50",
    "RCPT TO:<bob@example.test>",
    "RCPT TO:<alice@example.test>",
    "DATA",
]


class Filtered:
    """A relay with milters, and their sessions."""

    def __init__(self, relay: Relay, stack: AsyncExitStack):
        self.relay, self.stack, self.milters, self.settings = relay, stack, [], []
        self.server = None

    async def milter(self, script=None, *, when_down="defer", limit_s=5.0, **negotiated):
        """Add a milter: m1, m2, …"""
        milter = ScriptedMilter(script, **negotiated)
        address = await self.stack.enter_async_context(milter.at())
        self.milters.append(milter)
        name, roles = f"m{len(self.milters)}", ("relay", "local")
        self.settings.append(
            Milter(name, parse_address(address, Path()), roles, when_down, limit_s)
        )
        self.relay.milters.replace(self.settings)
        return milter

    async def client(self, **listener) -> Client:
        self.server = self.relay.server(**({"trusted_networks": ()} | listener))
        await self.server.start()
        self.stack.push_async_callback(self.server.drain, 0.2)
        client = await Client.connect(self.server.address)
        self.greeting = await client.reply()
        return client

    async def replies(self, *lines: str, body: str = BODY, **listener) -> list[str]:
        """The replies to a session, to its end or to the first that closes it."""
        client = await self.client(**listener)
        replies = []
        for line in lines or LINES:
            replies.append(await client.say(line))
            if replies[-1].startswith("354"):
                replies.append(await client.say(body[:-2]))
            if replies[-1].startswith("421"):
                replies.append(await client.reply())
                break
        client.writer.close()
        return replies

    @property
    def message(self):
        return self.relay.spool.accepted[-1]

    @property
    def stored(self) -> str:
        return read_all(self.message.contents[0]).decode()

    @property
    def step5(self) -> dict:
        return to_builtins(self.message.events[0].detail)


@asynccontextmanager
async def filtering(relay: Relay) -> AsyncIterator[Filtered]:
    async with AsyncExitStack() as stack:
        yield Filtered(relay, stack)
        while Client.opened:
            Client.opened.pop().writer.close()
        for arrival in relay.spool.arrivals:
            await until(lambda arrival=arrival: arrival.discarded == 1)
    assert all(one.places.taken == 0 for one in relay.milters._milters)


@pytest.fixture
async def filtered(relay):
    async with filtering(relay) as made:
        yield made


STAGES = {  # the command, and the place of its reply among those to LINES
    "connect": (b"C", 1),
    "helo": (b"H", 1),
    "mail": (b"M", 1),
    "rcpt": (b"R", 2),
    "data": (b"T", 4),
    "header": (b"L", 5),
    "end of header": (b"N", 5),
    "body": (b"B", 5),
    "end of message": (b"E", 5),
}
ANSWERS = {
    "reject": (packet(b"r"), "550 5.7.1 "),
    "tempfail": (packet(b"t"), "451 4.7.1 "),
    "reply": (packet(b"y", b"554 5.7.9 No %%\0"), "554 5.7.9 No %"),
    "shutdown": (packet(b"4"), "421 4.7.0 "),
    "closes": (CLOSE, "451 4.7.1 "),
}


@each_row("stage, answer", product(STAGES, ANSWERS))
async def test_each_refusal_is_the_reply_at_its_stage(stage, answer):
    (command, at), (sent, reply) = STAGES[stage], ANSWERS[answer]
    async with filtering(Relay()) as filtered:
        await filtered.milter({command: sent})
        replies = await filtered.replies()
        assert filtered.greeting.startswith("220 ")
        assert replies[at].startswith(reply), replies
        assert all(one[0] in "23" for one in replies[:at])
        assert not filtered.relay.spool.accepted
        assert (answer == "shutdown") == (replies[-1] == "")
        refusal, *_ = filtered.relay.refused
        assert (refusal.reason, refusal.rule) == (RefusalReason.MILTER, "m1")
        assert refusal.reply.startswith(reply)
        if at > 2:
            assert refusal.recipients == ("bob@example.test", "alice@example.test")


async def test_a_refused_recipient_is_refused_alone(filtered):
    def answer(data):
        return packet(b"r") if data.startswith(b"<bob") else None

    milter = await filtered.milter({b"R": answer})
    replies = await filtered.replies()
    assert [one[:3] for one in replies] == ["250", "250", "550", "250", "354", "250"]
    assert [x.path.address for x in filtered.message.entries[0].recipients] == [
        "alice@example.test"
    ]
    assert milter.of(b"R") == [b"<bob@example.test>\0", b"<alice@example.test>\0"]
    assert milter.of(b"M") == [b"<a@other.test>\0SIZE=50\0"]


async def test_a_recipient_that_we_refuse_is_not_asked_about(filtered):
    milter = await filtered.milter()
    await filtered.replies(*LINES[:2], "RCPT TO:<nobody@example.test>", "RCPT TO:<x@far.test>")
    assert milter.commands() == b"OCHM"


async def test_bdat_is_told_as_data_once_and_refused_with_its_chunks(filtered):
    milter = await filtered.milter({b"T": packet(b"t")})
    client = await filtered.client()
    await client.say_all(*LINES[:3])
    client.writer.write(b"BDAT 4\r\nA: bBDAT 8 LAST\r\n\r\n\r\nab\r\n")
    assert [(await client.reply())[:9] for _ in range(2)] == ["451 4.7.1"] * 2
    assert await client.say("NOOP") == "250 2.0.0 Ok"
    assert milter.commands().count(b"T") == 1
    [refusal] = filtered.relay.refused
    assert (refusal.command, refusal.reason, refusal.rule) == ("BDAT", RefusalReason.MILTER, "m1")
    assert refusal.recipients == ("bob@example.test",)
    milter.script.clear()
    await client.say_all(*LINES[1:3])
    client.writer.write(b"BDAT 4\r\nA: bBDAT 8 LAST\r\n\r\n\r\nab\r\n")
    assert [(await client.reply())[:3] for _ in range(2)] == ["250"] * 2
    assert milter.commands().endswith(b"AMRTLNBE")


async def test_a_silent_client_leaves_the_connections_to_others(filtered, monkeypatch):
    milter = await filtered.milter()
    client = await filtered.client(trusted_networks=("127.0.0.0/8",))
    [session] = inside(filtered.server).shared.places.sessions
    [places] = [one.places for one in filtered.relay.milters._milters]
    assert places.taken == 0
    await client.say_all(*LINES)
    assert (await client.say(BODY[:-2])).startswith("250")
    assert places.taken == 1
    monkeypatch.setattr(connection, "CONNECTIONS_MAX", 1)
    session._waited_s += 11
    session._timeout_cb()
    assert places.taken == 0
    assert (await client.say(LINES[1])).startswith("250")
    assert milter.commands().count(b"O") == 2
    for _ in range(2):
        session._waited_s += 6
        assert await client.say("NOOP") == "250 2.0.0 Ok"
    session._timeout_cb()
    assert (await client.reply()).startswith("421 4.4.2 ")
    await until(lambda: places.taken == 0)


@pytest.mark.parametrize(
    ("script", "more", "reply"),
    [
        ({b"M": packet(b"r")}, (), "550 5.7.1"),
        ({b"T": packet(b"t")}, LINES[2:], "451 4.7.1"),
        ({}, [*LINES[2:], "a bare\nLF\r\n."], "550 5.5.2"),
        ({}, [LINES[2], "RSET"], "250 2.0.0"),
    ],
)
async def test_the_end_of_a_transaction_leaves_the_connections_to_others(
    filtered, monkeypatch, script, more, reply
):
    await filtered.milter(script)
    monkeypatch.setattr(connection, "CONNECTIONS_MAX", 1)
    client = await filtered.client()
    replies = await client.say_all(*LINES[:2], *more)
    assert replies[-1].startswith(reply)
    assert [one.places.taken for one in filtered.relay.milters._milters] == [0]


CHANGES = b"".join(
    [
        added("X-Spam", "yes"),
        placed(b"i", 0, "X-Top", "1"),
        placed(b"m", 1, "Subject", "two"),
        packet(b"b", b"another\r\n"),
        packet(b"-", b"<bob@example.test>\0"),
        packet(b"+", b"<bob@y.test>\0"),
        packet(b"e", b"<new@other.test>\0\0"),
    ]
)


async def test_changes_are_applied_before_the_rules(filtered, tmp_path):
    (tmp_path / "1.toml").write_text(
        '[[rule]]\nname = "r"\nwhen = { header = { name = "X-Spam", matches = "yes" }, sender ='
        ' "new@other.test", body = { matches = "*another*" } }\n'
        'then = [ { set_header = { name = "X-Seen", value = "1" } } ]\n'
    )
    filtered.relay.rules = load_rules(tmp_path)
    await filtered.milter({b"E": CHANGES + packet(b"c")})
    second = await filtered.milter()
    assert (await filtered.replies())[-1].startswith("250")
    assert filtered.stored.startswith("X-Top: 1\r\nReceived: from client.test")
    end = "From: a@other.test\r\nSubject: two\r\nX-Spam: yes\r\nX-Seen: 1\r\n\r\nanother\r\n"
    assert filtered.stored.endswith(end)
    assert second.of(b"B") == [b"another\r\n"]
    message = filtered.message
    assert message.facts.envelope.reverse_path == "new@other.test"
    recipients = {x.path.address: x.added_by for each in message.entries for x in each.recipients}
    assert recipients == {"alice@example.test": "", "bob@y.test": "milter m1"}
    [removed] = message.final_recipients
    assert (removed.path.address, removed.state) == ("bob@example.test", RecipientState.DISCARDED)
    first, other = filtered.step5["milters"]
    assert (first["name"], first["stage"], first["answer"]) == ("m1", "end of message", "continue")
    assert first["changes"][:2] == ("add X-Spam", "insert X-Top")
    assert (other["name"], other["changes"]) == ("m2", ())


REJECTS = """[[rule]]
name = "r"
when = {{ {when} }}
then = [ {{ reject = "5.7.1 no" }} ]
"""


@pytest.mark.parametrize(
    ("when", "replies"),
    [
        ('body = { matches = "*text*" }', "550"),
        ('recipient = "*@y.test"', "550"),
        ('recipient = "*@example.test"', "250"),
    ],
)
async def test_rules_see_whom_a_milter_adds(filtered, tmp_path, when, replies):
    (tmp_path / "1.toml").write_text(REJECTS.format(when=when))
    filtered.relay.rules = load_rules(tmp_path)
    paths = [packet(b"-", b"<bob@example.test>\0"), packet(b"+", b"<new@y.test>\0")]
    paths += [packet(b"-", b"<alice@example.test>\0"), packet(b"+", b"<NEW@y.test>\0")]
    await filtered.milter({b"E": b"".join(paths) + packet(b"c")})
    assert (await filtered.replies())[-1][:3] == replies


@pytest.mark.parametrize(
    ("given", "reply", "left"),
    [
        ([], "250", set()),
        (["<x@far.test>"], "250", {"x@far.test"}),  # an operator's milter may let mail leave
        (["<nobody@example.test>"], "550", set()),
        (["<BOB@example.test>", "x@far.test"], "250", {"bob@example.test", "x@far.test"}),
        (["no address"], "451", set()),
        ([f"<{n}@far.test>" for n in range(20_001)], "451", set()),
    ],
    ids=["none", "foreign", "unknown", "known", "faulty", "many"],
)
async def test_recipients_in_place_of_those_of_the_client(filtered, given, reply, left):
    removed = [packet(b"-", f"<{one}@example.test>\0".encode()) for one in ("bob", "alice")]
    paths = [packet(b"+", f"{one}\0".encode()) for one in given]
    await filtered.milter({b"E": b"".join([*removed, *paths]) + packet(b"c")})
    assert (await filtered.replies())[-1][:3] == reply
    entries = [x for one in filtered.relay.spool.accepted for x in one.entries]
    assert {x.path.address.lower() for one in entries for x in one.recipients} == left


@pytest.mark.parametrize("second", [packet(b"r"), packet(b"t"), packet(b"d"), b"\0\0\0\0", CLOSE])
async def test_nothing_is_changed_for_a_message_that_another_one_does_not_take(filtered, second):
    await filtered.milter({b"E": CHANGES + packet(b"c")})
    await filtered.milter({b"E": second})
    replies = await filtered.replies()
    if second == packet(b"d"):
        message = filtered.message
        states = [(x.path.address, x.state) for x in message.final_recipients]
        discarded = RecipientState.DISCARDED
        assert states == [("bob@example.test", discarded), ("alice@example.test", discarded)]
        assert (message.entries, replies[-1][:3]) == ((), "250")
        assert "another" not in filtered.stored
        assert message.final_recipients[0].reply == "discarded by milter m2"
    else:
        assert not filtered.relay.spool.accepted
        assert replies[-1][0] in "45"


@pytest.mark.parametrize("command", [b"M", b"R", b"T", b"L", b"N", b"B", b"E"])
async def test_a_message_is_discarded_at_each_stage(filtered, command):
    await filtered.milter({command: packet(b"d")})
    later = await filtered.milter()
    replies = await filtered.replies()
    assert [one[:3] for one in replies] == ["250"] * 4 + ["354", "250"]
    assert {one.state for one in filtered.message.final_recipients} == {RecipientState.DISCARDED}
    assert filtered.step5["milters"][0]["answer"] == "discard"
    assert b"E" not in later.commands()


async def test_quarantine_holds_and_counts(filtered):
    await filtered.milter({b"E": packet(b"q", b"looks odd\0") + packet(b"c")})
    assert (await filtered.replies())[-1].startswith("250")
    [entry] = filtered.message.entries
    assert (entry.extra.reason, entry.extra.rule) == ("looks odd", "milter m1")
    assert filtered.message.held_by_rules == ("milter m1",)
    assert filtered.step5["held"] == {
        "milter m1: looks odd": ["bob@example.test", "alice@example.test"]
    }


async def test_a_large_new_body_is_in_a_file_until_it_is_accepted(filtered):
    lines = (b"x" * 998 + b"\r\n") * 1500
    parts = b"".join(packet(b"b", lines[at : at + 997]) for at in range(0, len(lines), 997))
    await filtered.milter({b"E": parts + packet(b"c")})
    assert (await filtered.replies())[-1].startswith("250")
    assert filtered.message.contents[0].body[0].size == len(lines) + 2
    [arrival] = filtered.relay.spool.arrivals
    assert arrival.discarded == 1


async def test_a_client_that_leaves_does_not_stop_the_decision(filtered):
    decides = asyncio.Event()

    async def late():
        await decides.wait()
        yield packet(b"c")

    milter = await filtered.milter({b"E": lambda _: late()})
    client = await filtered.client()
    await client.say_all(*LINES)
    client.writer.write(BODY.encode())
    await until(lambda: b"E" in milter.commands())
    client.reset()
    await until(lambda: not filtered.server.sessions)
    assert filtered.server.acceptances == 1
    decides.set()
    await until(lambda: filtered.relay.spool.accepted)
    await until(lambda: not filtered.server.acceptances)
    await until(lambda: milter.commands().endswith(b"EQ"))


async def test_results_count_only_from_a_milter(filtered, tmp_path):
    (tmp_path / "1.toml").write_text(
        '[[rule]]\nname = "r"\nwhen = { auth = { dmarc = "fail" } }\nthen = [ { discard = true } ]\n'
    )
    filtered.relay.rules = load_rules(tmp_path)
    forged = "Authentication-Results: mx.test; dmarc=fail\r\n" + BODY
    milter = await filtered.milter()
    await filtered.replies(body=forged)
    assert filtered.message.entries
    assert "checks" not in filtered.step5
    value = (
        "mx.test; dmarc=fail (p=none) header.from=other.test; spf=pass smtp.mailfrom=a@other.test"
    )
    milter.script[b"E"] = added("Authentication-Results", value) + packet(b"c")
    await filtered.replies(body=BODY)
    assert not filtered.message.entries
    assert filtered.step5["checks"] == {
        "spf": {"result": "pass", "domain": "other.test", "reason": ""},
        "helo": None,
        "dkim": [],
        "dmarc": {"result": "fail", "domain": "other.test", "reason": "p=none", "policy": "none"},
        "aligned": False,
    }


@pytest.mark.parametrize(
    ("results", "author", "is_verified"),
    [
        ("spf=pass smtp.mailfrom=b@OTHER.test", "x@y.test", True),
        ("spf=pass smtp.mailfrom=other.test", "x@y.test", True),
        ("spf=pass smtp.helo=other.test", "a@other.test", False),
        (
            "spf=pass smtp.mailfrom=a.other.test; spf=fail smtp.mailfrom=other.test",
            "a@other.test",
            False,
        ),
        ("dkim=fail header.d=other.test; dkim=pass header.d=Other.test", "A@other.test", True),
        ("dkim=pass header.d=other.test", "b@other.test", False),  # it may be sent once more
        ("dkim=pass header.d=other.test", "a@other.test, b@other.test", False),
        ("dkim=pass header.d=x.other.test", "a@other.test", False),
        ("dmarc=pass header.from=other.test", "a@other.test", True),
        ("dmarc=pass header.from=other.test", "b@other.test", False),
        (
            "dmarc=none header.from=other.test; auth=pass smtp.auth=a@other.test",
            "a@other.test",
            False,
        ),
    ],
)
@pytest.mark.parametrize("trusted_networks", [(), ("127.0.0.1",)])
async def test_a_check_of_a_milter_verifies_a_strangers_sender(
    filtered, results, author, is_verified, trusted_networks
):
    field = added("Authentication-Results", f"mx.test; {results}")
    await filtered.milter({b"E": field + packet(b"c")})
    body = BODY.replace("From: a@other.test", f"From: {author}")
    await filtered.replies(body=body, trusted_networks=trusted_networks)
    is_stranger = not trusted_networks
    assert filtered.message.facts.extra.verified is (is_verified and is_stranger)


FORGED = "Authentication-Results: mx.test; dmarc=pass\r\n"


@pytest.mark.parametrize(
    ("later", "found"),
    [
        (added("X-Other", "1"), "fail"),
        (placed(b"m", 2, "authentication-results", ""), ""),
        (placed(b"m", 2, "Authentication-Results", "f.test; dmarc=none"), "none"),
        (placed(b"m", 1, "Authentication-Results", ""), "fail"),
        (placed(b"i", 0, "Authentication-RESULTS", "f.test; dmarc=none"), "none"),
    ],
)
async def test_results_are_those_that_are_left_of_what_milters_wrote(filtered, later, found):
    field = added("Authentication-Results", "f.test; dmarc=fail")
    await filtered.milter({b"E": field + packet(b"c")})
    await filtered.milter({b"E": later + packet(b"c")})
    assert (await filtered.replies(body=FORGED + BODY))[-1].startswith("250")
    checks = filtered.step5.get("checks")
    assert (checks["dmarc"]["result"] if checks else "") == found


PLAYED = envelope("bob@example.test", "x@far.test", envid="e1")


@pytest.mark.parametrize("origin", [PICKUP, PROGRAM], ids=["pickup", "sendmail"])
async def test_a_session_is_played(filtered, origin):
    milter = await filtered.milter({b"E": added("X-Spam", "no") + packet(b"c")})
    reply = await accept(filtered.relay, PLAYED, origin)
    assert reply.queue_id
    await until(milter.ended.is_set)
    assert milter.commands() == b"OCHMRRTLLLNBEQ"
    assert milter.of(b"C")[0].startswith(b"localhost\0004")
    account = b"alice@example.test" if origin is PICKUP else b"ann@relay.example.test"
    assert b"{auth_authen}\0" + account in milter.of(b"D")[2]
    assert "X-Spam: no" in filtered.stored


@pytest.mark.parametrize("command", list("CHMRTLNBE"))
@pytest.mark.parametrize("origin", [PICKUP, PROGRAM], ids=["pickup", "sendmail"])
async def test_refusals_of_what_is_played(filtered, origin, command):
    milter = await filtered.milter({command.encode(): packet(b"4")})
    reply = await accept(filtered.relay, PLAYED, origin)
    assert (reply.reply[:9], reply.milter) == ("451 4.7.0", "m1")
    milter.script[command.encode()] = packet(b"y", b"421-4.7.1 Not\r\n421 4.7.1 now\0")
    assert (await accept(filtered.relay, PLAYED, origin)).reply == "451 4.7.1 Not 421 4.7.1 now"
    milter.script[command.encode()] = packet(b"y", b"550 5.7.9 No\0")
    reply = await accept(filtered.relay, PLAYED, origin)
    if origin is PROGRAM:
        assert (reply.reply, reply.milter) == ("550 5.7.9 No", "m1")
        assert not filtered.relay.spool.accepted
        return
    assert reply.queue_id
    message = filtered.message
    assert not message.entries
    failed = [(x.path.address, x.status, x.reply) for x in message.final_recipients]
    assert failed == [(one.address, "5.7.9", "550 5.7.9 No") for one in PLAYED[1]]
    assert [one.facts.source.value for one in filtered.relay.spool.reports] == ["report"]
    assert filtered.step5["milters"][0]["answer"] == "reply"


@pytest.mark.parametrize("origin", [PICKUP, PROGRAM], ids=["pickup", "sendmail"])
async def test_a_recipient_refused_in_a_played_session_is_reported(filtered, origin):
    await filtered.milter({b"R": lambda data: packet(b"r") if b"far" in data else None})
    assert (await accept(filtered.relay, PLAYED, origin)).queue_id
    [failed] = filtered.message.final_recipients
    assert (failed.path.address, failed.status, failed.position) == ("x@far.test", "5.7.1", 2)
    said = [(one["name"], one["stage"], one["answer"]) for one in filtered.step5["milters"]]
    assert said == [("m1", "rcpt", "reject"), ("m1", "end of message", "continue")]
    assert len(filtered.relay.spool.reports) == 1
    assert [x.path.address for x in filtered.message.entries[0].recipients] == ["bob@example.test"]


@pytest.mark.parametrize("answer", [packet(b"r"), packet(b"t"), packet(b"d"), CLOSE])
async def test_a_repeated_submission_is_accepted_whatever_a_milter_says(filtered, answer):
    milter = await filtered.milter()
    first = await accept(filtered.relay, PLAYED, PICKUP)
    milter.script[b"E"] = answer
    assert await accept(filtered.relay, PLAYED, PICKUP) == first
    assert len(filtered.relay.spool.accepted) == 1
    assert not filtered.relay.spool.reports


async def test_a_role_that_no_milter_has_asks_none(filtered):
    milter = await filtered.milter()
    await filtered.replies(role="submission", trusted_networks=("127.0.0.0/8",))
    filtered.relay.milters.replace([])
    assert (await filtered.replies())[-1].startswith("250")
    assert len(filtered.relay.spool.accepted) == 2
    await accept(filtered.relay, PLAYED, PICKUP)
    assert not milter.heard
    assert "milters" not in filtered.step5


async def test_a_recipient_that_a_milter_adds_hides_no_rejection(filtered, tmp_path):
    """A stranger gets no report, and has to get the reply."""
    (tmp_path / "1.toml").write_text(REJECTS.format(when='recipient = "*@example.test"'))
    filtered.relay.rules = load_rules(tmp_path)
    await filtered.milter({b"E": packet(b"+", b"<archive@y.test>\0") + packet(b"c")})
    assert (await filtered.replies())[-1] == "550 5.7.1 no"
    assert not filtered.relay.spool.accepted


async def test_an_own_id_stays_if_a_milter_wrote_it(filtered):
    own = "relay.example.test; spf=pass"
    await filtered.milter({b"E": added("Authentication-Results", own) + packet(b"c")})
    forged = "Authentication-Results: relay.example.test; dmarc=pass\r\n" + BODY
    await filtered.replies(body=forged)
    assert filtered.stored.count("Authentication-Results") == 1
    assert f"Authentication-Results: {own}" in filtered.stored
