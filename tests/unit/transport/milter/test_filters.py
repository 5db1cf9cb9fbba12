"""Sessions with scripted milters on real sockets."""

import asyncio
import re
from itertools import product

import pytest

from relay.base.message.content import LARGE_BYTES, LargeContent, MemoryOctets, read_all
from relay.base.message.header import ParsedContent
from relay.transport.milter import changes, connection, filters
from relay.transport.milter.filtered_message import NewBodies
from relay.transport.milter.filters import FilterClient, FilterSession
from tests.support.logs import capture_logs
from tests.support.milter import CLOSE, HANG, ScriptedMilter, added, packet, placed
from tests.support.tables import each_row
from tests.unit.transport.milter.conftest import CLIENT, MAIL, MemoryFile

LATER = "451 4.7.1 Service unavailable - try again later"
WHEN_DOWN = {"accept": "", "defer": LATER, "reject": "550 5.5.0 Service unavailable"}


@pytest.mark.parametrize("tcp", [False, True])
async def test_what_a_milter_hears(filtered, tcp):
    milter = ScriptedMilter()
    session = await filtered(milter, tcp=tcp)
    verdict = await session.verdict()
    assert verdict.content.joined() == (
        b"From: a@x.test\r\nTo: b@y.test,\r\n\tc@y.test\r\nSubject:  two\r\n\r\nHello\r\n"
    )
    session.session.close()
    await milter.ended.wait()
    assert milter.heard == [
        (b"O", b"\0\0\0\x06\0\0\x01\xff\0\x1f\xf7\xff"),
        (
            b"D",
            b"Cj\0relay.test\0{daemon_name}\0mx.relay.test\0v\0Relay\0_\0client.test [192.0.2.7]\0",
        ),
        (b"C", b"client.test\x004\x9c\x40192.0.2.7\0"),
        (b"D", b"H"),
        (b"H", b"client.test\0"),
        (b"D", b"Mi\0QID\0{auth_authen}\0ann\0{mail_addr}\0a@x.test\0"),
        (b"M", b"<a@x.test>\0SIZE=10\0"),
        (b"D", b"Ri\0QID\0{rcpt_addr}\0b@y.test\0"),
        (b"R", b"<b@y.test>\0"),
        (b"D", b"Ti\0QID\0"),
        (b"T", b""),
        (b"L", b"From\0a@x.test\0"),
        (b"L", b"To\0b@y.test,\n\tc@y.test\0"),
        (b"L", b"Subject\0 two\0"),
        (b"D", b"Ni\0QID\0"),
        (b"N", b""),
        (b"B", b"Hello\r\n"),
        (b"D", b"Ei\0QID\0"),
        (b"E", b""),
        (b"Q", b""),
    ]


async def test_each_milter_sees_what_the_one_before_it_has_changed(filtered):
    first = ScriptedMilter(
        {
            b"E": placed(b"i", 0, "X-Top", "t")
            + placed(b"m", 1, "Subject", "spam")
            + added("X-A", "1\n\t2")
            + packet(b"b", b"New\r\n")
            + packet(b"p")
            + packet(b"b", b"body")
            + packet(b"e", b"<>\0")
            + packet(b"+", b"<n@y.test>\0")
            + packet(b"+", b"<o@y.test>\0")
            + packet(b"q", b"odd\0")
            + packet(b"a")
        }
    )
    second = ScriptedMilter(
        {
            b"E": placed(b"m", 1, "x-top", "")
            + packet(b"-", b"<O@Y.test>\0")
            + packet(b"-", b"<b@y.test>\0")
            + packet(b"-", b"<o@y.test>\0")
            + packet(b"c")
        }
    )
    session = await filtered(first, second)
    verdict = await session.verdict()
    assert [one for one in second.of(b"L") if not one.startswith(b"To")] == [
        b"X-Top\0t\0",
        b"From\0a@x.test\0",
        b"Subject\0spam\0",
        b"X-A\x001\n\t2\0",
    ]
    assert second.of(b"B") == [b"New\r\nbody\r\n"]
    assert (verdict.top, verdict.content.joined()) == (
        b"",
        b"From: a@x.test\r\nTo: b@y.test,\r\n\tc@y.test\r\nSubject: spam\r\nX-A: 1\r\n\t2\r\n\r\nNew\r\nbody\r\n",
    )
    assert (verdict.sender.address, list(verdict.added), verdict.removed) == (
        "",
        ["n@y.test"],
        {"O@y.test", "b@y.test", "o@y.test"},
    )
    assert (verdict.quarantine, verdict.quarantined_by) == ("odd", "m1")
    assert verdict.said[0].changes == (
        "insert X-Top",
        "change Subject",
        "add X-A",
        "change sender to <>",
        "add recipient <n@y.test>",
        "add recipient <o@y.test>",
        "replace body",
        "quarantine",
    )


async def test_a_large_body_is_read_and_replaced_in_blocks(filtered):
    text = b"0123456789\r\n" * 200_000
    milter = ScriptedMilter(
        {
            b"B": lambda chunk: packet(b"c") if len(milter.of(b"B")) < 10 else packet(b"s"),
            b"E": b"".join(
                packet(b"b", text[at : at + 65_535]) for at in range(0, len(text), 65_535)
            )
            + packet(b"c"),
        }
    )
    other = ScriptedMilter()
    session = await filtered(milter, other)
    verdict = await session.verdict(
        LargeContent(
            MAIL.partition(b"Hello")[0][:-2], (MemoryOctets(b"\r\n" + text),), eight_bit=False
        )
    )
    assert b"".join(milter.of(b"B")) == text[: sum(map(len, milter.of(b"B")))]
    assert (len(milter.of(b"B")), b"".join(other.of(b"B"))) == (10, text)
    assert {type(verdict.content.rest), len(session.files)} == {LargeContent, 1}
    assert verdict.content.rest.long_lines  # they are looked for before they leave
    assert max(map(len, session.files[0].written)) <= 2 * LARGE_BYTES
    assert read_all(verdict.content.joined()) == MAIL.partition(b"Hello")[0] + text
    assert not session.files[0].is_discarded
    verdict.release()
    assert session.files[0].is_discarded


FAULTS = {
    "an answer out of turn": packet(b"c") + packet(b"c"),
    "an unknown command": packet(b"Z"),
    "half a packet": b"\0\0\0\x09h",
    "a body that is too large": packet(b"b", b"x\r\n" * 20_000) * 4,
    "a lone CR at the end": packet(b"b", b"a\r") + packet(b"c"),
    "too many fields": added("X", "a") * 98 + packet(b"c"),
}


@each_row("fault, when_down", product(FAULTS, WHEN_DOWN))
async def test_a_fault_at_the_end_of_a_message(filtered, monkeypatch, fault, when_down):
    monkeypatch.setattr(changes, "FIELDS_MAX", 100)
    good = ScriptedMilter({b"E": added("X-Good", "1") + packet(b"c")})
    bad = ScriptedMilter({b"E": added("X-Half", "1") + packet(b"e", b"<>\0") + FAULTS[fault]})
    if fault == "half a packet":
        bad.closes_after = b"E"
    session = await filtered(good, bad, when_down=when_down)
    session.store = NewBodies(200_000, session.store.new_file)
    with capture_logs() as logged:
        verdict = await session.verdict()
        assert verdict.answer.reply == WHEN_DOWN[when_down]
        assert (verdict.sender, [one.answer for one in verdict.said]) == (
            None,
            ["continue", "down"],
        )
        if when_down == "accept":
            assert b"X-Good: 1\r\n\r\nHello\r\n" in verdict.content.joined()
            assert b"X-Half" not in verdict.content.joined()
        assert (await session.session.mail("a@x.test")).reply == ""  # the next message
    assert [(one["event"], one["milter"]) for one in logged] == [("milter failed", "m2")]
    assert list(session.set.down) == ["m2"]
    assert verdict.said[1].reason == session.set.down["m2"] == logged[0]["error"]
    assert [one.places.taken for one in session.set._milters] == [1, 1]
    begun = [command for command, _ in bad.heard if command in b"OCHM"]
    assert begun == [b"O", b"C", b"H", b"M"] * 2


@each_row("stage, answer", product("OCHMRTLNBE", (CLOSE, packet(b"Z"), HANG)))
async def test_a_milter_that_breaks_off_at_a_stage(filtered, monkeypatch, stage, answer):
    monkeypatch.setattr(connection, "_CONTENT_FACTOR", 1)
    milter = ScriptedMilter({stage.encode(): answer})
    session = await filtered(milter, timeout=0.04 if answer == HANG else 60.0)
    with capture_logs() as logged:
        assert (await session.refused()).reply == WHEN_DOWN["defer"]
    assert len(logged) == 1
    assert session.set._milters[0].places.taken == 0


@pytest.mark.parametrize(("more", "said"), [(packet(b"a"), "out of turn"), (b"", "closed|reset")])
async def test_what_a_milter_sends_between_commands_is_no_answer(filtered, more, said):
    go_on, is_sent = asyncio.Event(), asyncio.Event()

    async def twice(_):
        yield packet(b"c")
        await go_on.wait()
        yield more
        is_sent.set()

    milter = ScriptedMilter({b"M": twice})
    milter.closes_after = b"" if more else b"M"
    session = await filtered(milter)
    session._greet()
    assert (await session.session.mail("")).reply == ""
    go_on.set()
    await (is_sent if more else milter.ended).wait()
    assert (await session.session.rcpt("b@y.test")).reply == LATER
    assert re.search(said, session.set.down["m1"])


async def test_progress_gives_more_time_but_not_for_ever(filtered, monkeypatch):
    def slowly(meanwhile):
        async def answer(_):
            for _ in range(4):
                await asyncio.sleep(0.6)
                yield meanwhile
            yield packet(b"c")

        return answer

    script = {b"H": slowly(packet(b"p")), b"E": slowly(b"")}
    session = await filtered(ScriptedMilter(script), timeout=2)
    assert (await session.verdict()).said[0].answer == "continue"  # content has ten times as long

    async def endlessly(_):
        while True:
            yield packet(b"p") * 1000

    monkeypatch.setattr(filters, "_ALL_S", 0.15)
    session = await filtered(ScriptedMilter({b"E": endlessly}))
    verdict = await session.verdict()
    assert verdict.said[0].reason == "no decision within ten minutes"


NO_PLACE = "451 4.3.2 Too many connections to a filter - try again later"


async def mail_of(session, ip: str, *, role="relay", login=""):
    """A session that has given MAIL, and its answer."""
    made = session.another(role)
    made.connect(FilterClient(address=ip))
    return made, (await made.mail("a@x.test", (), {"auth_authen": login})).reply


async def all_of(session, ip: str, **options) -> list[FilterSession]:
    """The sessions of a client, up to the first that gets no connection."""
    taken = []
    while not (made := await mail_of(session, ip, **options))[1]:
        taken.append(made[0])
    assert made[1] == NO_PLACE
    return taken


async def test_connections_are_shared_by_clients_and_accounts(filtered, monkeypatch):
    monkeypatch.setattr(connection, "_TURN_S", 0.01)
    session = await filtered(ScriptedMilter(), when_down="accept", role=("relay", "submission"))
    quiet = session.set.session("relay")
    quiet.connect(CLIENT)
    quiet.helo("client.test")
    sessions = [await all_of(session, f"192.0.2.{n}") for n in (1, 2)]
    assert [len(each) for each in sessions] == [40, 20]
    assert session.set._milters[0].places.taken == 60  # none of who gave no MAIL
    assert (await mail_of(session, "192.0.2.3"))[1] == ""
    login = {"role": "submission", "login": "ann@x.test"}
    sessions += [await all_of(session, f"192.0.2.{n}", **login) for n in (4, 5)]
    assert [len(each) for each in sessions[2:]] == [19, 0]
    assert session.set.down == {}  # it is not the milter's fault
    monkeypatch.setattr(connection, "_TURN_S", 60.0)
    waiting = asyncio.create_task(mail_of(session, "192.0.2.9"))
    await asyncio.sleep(0)
    sessions[0][0].abort()
    async with asyncio.timeout(30):
        assert (await waiting)[1] == ""


async def test_many_messages_of_a_client_at_once_take_turns(filtered):
    session = await filtered(ScriptedMilter())

    async def send() -> str:
        made, reply = await mail_of(session, "192.0.2.1")
        verdict = None if reply else await made.message(ParsedContent.of(MAIL), session.store)
        made.close()
        return reply or verdict.answer.reply

    assert set(await asyncio.gather(*(send() for _ in range(200)))) == {""}


async def test_a_session_keeps_its_connection_while_half_are_free(filtered, monkeypatch):
    milter, begun = ScriptedMilter(), []
    session = await filtered(milter)
    for limit in (100, 100, 1, 1):
        monkeypatch.setattr(connection, "CONNECTIONS_MAX", limit)
        milter.heard.clear()
        assert (await session.verdict()).said[0].answer == "continue"
        begun.append(milter.commands().lstrip(b"Q")[:1])
    assert begun == [b"O", b"M", b"M", b"O"]
    session.session.helo("other.test")
    milter.heard.clear()
    assert (await session.verdict()).said[0].answer == "continue"
    assert milter.of(b"H") == [b"other.test\0"]


@pytest.mark.parametrize("stage", [b"C", b"H"])
async def test_a_session_that_a_milter_accepts_has_no_more_connections(filtered, stage):
    milter = ScriptedMilter({stage: packet(b"a")})
    session = await filtered(milter)
    for _ in range(2):
        verdict = await session.verdict()
        assert [(one.stage, one.answer) for one in verdict.said] == [
            ({b"C": "connect", b"H": "helo"}[stage], "accept")
        ]
    assert milter.commands().rstrip(b"Q") == b"OCH"[: 2 + (stage == b"H")]
    assert session.observed == [("m1", "accept")]


async def test_a_full_disk_ends_the_message_and_the_connection(filtered):
    class FullFile(MemoryFile):
        async def write(self, blocks):
            raise RuntimeError("full")

    milter = ScriptedMilter({b"E": packet(b"b", b"x\r\n" * 400_000) + packet(b"c")})
    session = await filtered(milter)
    file = FullFile()
    session.store = NewBodies(10**7, lambda: file)
    with pytest.raises(RuntimeError, match="full"):
        await session.verdict()
    assert (file.is_discarded, session.set._milters[0].places.taken) == (True, 0)
    assert (await session.session.mail("a@x.test")).reply == ""


@pytest.mark.parametrize(
    ("client", "heard"),
    [
        (FilterClient("", "192.0.2.7", 25), b"[192.0.2.7]\x004\0\x19192.0.2.7\0"),
        (FilterClient("c.test", "2001:db8::1", 25), b"c.test\x006\0\x192001:db8::1\0"),
        (FilterClient(), b"localhost\0U"),
    ],
)
async def test_clients(filtered, client, heard):
    milter = ScriptedMilter()
    session = await filtered(milter)
    session.session.connect(client)
    await session.session.mail("")
    assert milter.of(b"C") == [heard]
