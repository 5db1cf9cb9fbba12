"""A child that lies or breaks the rules: it is refused or ended, and the next one serves."""

import asyncio
import os
import time
from typing import Any
from zlib import crc32

import msgspec
import pytest

from relay.base.accounts.account import Account
from relay.base.accounts.password_schemes import Password
from relay.base.accounts.passwords import PasswordChecker
from relay.base.message.envelope import Source
from relay.base.pressure import PressureState
from relay.base.settings.tree import SmtpListener
from relay.base.socket_address import Address
from relay.transport.gate import keeper as keeper_module
from relay.transport.gate import owner as owner_module
from relay.transport.gate import wire
from relay.transport.ingress.listener_role import PICKUP
from relay.transport.ingress.session_client import RefusedCommand, SessionClaims
from tests.support.events import until
from tests.support.ingress import FakeAccounts
from tests.support.logs import capture_logs
from tests.support.lying_child import (
    LOCAL,
    STRANGER,
    WAIT_S,
    Child,
    Owner,
    accept,
    check_recipient,
    check_sender,
    framed,
    owner_of,
)
from tests.support.manual_clock import ManualClock

REMOTE, ALICE = "q@other.test", "alice@example.test"
LOCAL_ERROR = "451 4.3.0 Local error, try again later"
CLOSED = {"trusted_networks": ()}


@pytest.fixture
async def owner(tmp_path, monkeypatch):
    async with owner_of(tmp_path, monkeypatch, **CLOSED) as made:
        yield made


def raw(*values: Any) -> bytes:
    return framed(values)


@pytest.mark.parametrize(
    ("octets", "reason"),
    [
        (lambda n: framed(check_sender(n ^ 1, 1)), "CheckSender of a session that does not exist"),
        (lambda n: framed(wire.Ended(n)) * 2, "Ended of a session that does not exist"),
        (
            lambda n: framed(wire.Ended(n)) + framed(accept(n, 1)),
            "Accept of a session that does not exist",
        ),
        (
            lambda n: framed(wire.OpenBody(n, 1)) + framed(accept(n, 2)),
            "Accept before the last answer",
        ),
        (lambda n: framed(accept(n, 1, ret="FULL\r\nRSET")), "Expected `str` matching regex"),
        (lambda n: framed(accept(n, 1, to="")), "Expected `array` of length >= 1"),
        (lambda n: framed(check_recipient(n, 1, "x" * 257)), "Expected `str` of length <= 256"),
        (
            lambda n: framed(wire.LogIn(n, 1, "x" * 12289, "", False)),
            "Expected `str` of length <= 12288",
        ),
        (lambda n: raw("Ready", [], [], {"x" * 41: [1, ""]}), "Expected `str` of length <= 40"),
        (lambda n: framed(wire.LoadState(PressureState(), "")), "Invalid value 'LoadState'"),
        (lambda n: raw("Nothing", n), "Invalid value 'Nothing'"),
        (lambda n: raw("CheckSender", "n", 1, STRANGER), "Expected `int`, got `str`"),
        (lambda n: raw("CheckSender", n, 1), "Expected `array` of at least length 4, got 3"),
        (
            lambda n: raw("CheckSender", n, 1, "a\ud800".encode("utf-8", "surrogatepass")),
            "Expected `str`",
        ),
        (lambda n: b"\0\0\0\0", "Input data was truncated"),
        (lambda n: b"\0\0\0\1\xc0", "Expected `array`, got `None`"),
        (lambda n: b"\xff\xff\xff\xff", "found a frame of 4294967295 octets"),
        (lambda n: b"\0\0\0\1\xc1", "MessagePack data is malformed"),
    ],
)
async def test_a_child_that_breaks_the_rules_is_ended(owner, octets, reason):
    number, child = await owner.session(), owner.child
    with capture_logs() as logged:
        child.say_octets(octets(number))
        await owner.ended(child)
    (error,) = [one["error"] for one in logged if one["log_level"] == "error"]
    assert reason in error
    assert error.startswith("the process of the SMTP sessions ended: ")
    await owner.accepts()
    assert len(owner.relay.spool.accepted) == 1


async def test_a_frame_that_is_cut_off_is_nothing(owner: Owner) -> None:
    number, child = await owner.session(), owner.child
    await child.ask(lambda call: check_sender(number, call))
    await child.ask(lambda call: check_recipient(number, call))
    child.say_octets(framed(accept(number, 9))[:-1])
    child.die()
    await owner.ended(child)
    await owner.accepts()
    assert len(owner.relay.spool.accepted) == 1


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ((), {}),  # nobody was asked
        ((check_sender,), {}),
        ((check_sender, check_recipient), {"to": REMOTE}),
        ((check_sender, check_recipient), {"sender": ALICE}),
        ((check_sender, lambda n, c: check_recipient(n, c, REMOTE)), {"to": REMOTE}),
        ((check_recipient, check_sender), {}),  # of another transaction
        ((check_sender, check_recipient), {"helo": "x\r\nX-Forged: yes"}),
    ],
)
async def test_mail_of_a_stranger_goes_where_the_owner_has_said(owner, asked, told):
    number, child = await owner.session(), owner.child
    for one in asked:
        await child.ask(lambda call, one=one: one(number, call))
    with capture_logs() as logged:
        reply = await child.ask(lambda call: accept(number, call, **told))
    assert reply["reply"] == LOCAL_ERROR
    assert [one["event"] for one in logged] == ["the gate hands over mail that is not taken"]
    assert not owner.relay.spool.accepted


async def test_claims_of_a_session_are_those_of_a_stranger(owner: Owner) -> None:
    number, child = await owner.session(), owner.child
    await child.ask(lambda call: check_sender(number, call))
    await child.ask(lambda call: check_recipient(number, call))
    frame = msgspec.msgpack.decode(wire.encode(accept(number, 9, helo="trusted")))
    frame[3][2] |= {"role": "local", "pickup": True}  # claims
    child.say_octets(framed([*frame, True, ALICE, "192.0.2.1"]))  # nobody reads what is more
    await until(lambda: owner.relay.spool.accepted)
    (message,) = owner.relay.spool.accepted
    facts = message.facts
    assert (facts.trusted, facts.account, facts.client) == (False, "", "trusted [127.0.0.1]")
    assert (facts.source, facts.submission_id) == (Source.SMTP, "")


def test_no_child_hears_of_a_role_that_no_configuration_names() -> None:
    listener = SmtpListener(Address("127.0.0.1", 25))
    setup = wire.Setup("relay.test", [wire.ListenerSetup(listener, [], False, False)])
    frame = msgspec.msgpack.decode(wire.encode(setup))
    assert wire.decode_from_owner(wire.encode(frame)) == setup
    frame[2][0][0]["role"] = PICKUP.name
    with pytest.raises(ValueError, match="Invalid enum value 'local'"):
        wire.decode_from_owner(wire.encode(frame))


async def test_a_login_is_the_owners(owner: Owner) -> None:
    number, child = await owner.session(), owner.child

    async def sent_by(sender: str) -> str:
        await child.ask(lambda call: check_sender(number, call, sender))
        told = await child.ask(lambda call: accept(number, call, sender=sender, to=REMOTE))
        return str(told["reply"][:3])

    assert await sent_by(ALICE) == "451"
    assert (await child.ask(lambda call: wire.LogIn(number, call, ALICE, "wrong", False)))[0] == ""
    assert await sent_by(ALICE) == "451"
    assert (await child.ask(lambda call: wire.LogIn(number, call, ALICE, "alice", False)))[
        0
    ] == ALICE
    assert await sent_by("bob@example.test") == "451"
    assert await sent_by(ALICE) == "250"
    await child.ask(lambda call: check_sender(number, call, ALICE))
    owner.relay.accounts.names = ()
    told = await child.ask(lambda call: accept(number, call, sender=ALICE, to=REMOTE))
    assert told["reply"][:3] == "421"
    assert (await child.ask(lambda call: check_sender(number, call, ALICE)))[:3] == "421"
    (message,) = owner.relay.spool.accepted
    assert (message.facts.account, message.facts.trusted) == (ALICE, True)


async def test_what_the_owner_has_taken_ends_with_a_login(owner: Owner) -> None:
    number, child = await owner.session(), owner.child
    bob = "bob@example.test"
    assert await child.ask(lambda call: check_sender(number, call, bob)) == ""
    assert (await child.ask(lambda call: wire.LogIn(number, call, ALICE, "alice", False)))[
        0
    ] == ALICE
    told = await child.ask(lambda call: accept(number, call, sender=bob, to=REMOTE))
    assert told["reply"] == LOCAL_ERROR
    assert await child.ask(lambda call: check_sender(number, call, ALICE)) == ""
    taken = await child.ask(lambda call: wire.CheckRecipient(number, call, REMOTE, ALICE, 0))
    assert taken["reply"] == ""
    assert (await child.ask(lambda call: wire.LogIn(number, call, ALICE, "wrong", False)))[0] == ""
    told = await child.ask(lambda call: accept(number, call, sender=ALICE, to=REMOTE))
    assert told["reply"] == LOCAL_ERROR


class GuessedAccounts(FakeAccounts):
    """They have the delays of real ones."""

    def __init__(self) -> None:
        super().__init__()
        self.checker = PasswordChecker(ManualClock(), rng=bytes)

    async def by_smtp_login(self, user: str, password: str, *, client: str) -> Account | None:
        stored = Password(plain=b"alice")
        is_right = await self.checker.check(user, stored, password, client=client)
        return self.by_address(user) if is_right else None


async def test_who_guesses_passwords_is_delayed_by_the_owner(tmp_path, monkeypatch) -> None:
    async with owner_of(tmp_path, monkeypatch, accounts=GuessedAccounts(), **CLOSED) as owner:
        child, answers = owner.child, []
        for guess in ("a", "b", "c", "alice"):  # each in a session of its own
            number = await owner.session()
            answers.append(
                await child.ask(
                    lambda call, n=number, g=guess: wire.LogIn(n, call, ALICE, g, False)
                )
            )
        owner.relay.accounts.checker.close()
    assert [login for login, *_ in answers] == [""] * 4
    assert [bool(delayed) for _, delayed, *_ in answers] == [False, False, False, True]


def error_in(logged: list[dict[str, Any]]) -> str:
    return next(one["error"] for one in logged if "error" in one)


def files(owner: Owner) -> list[str]:
    return sorted(path.name for path in owner.folder.iterdir())


async def no_files(owner: Owner) -> None:
    await until(lambda: not files(owner))


@pytest.mark.parametrize("lie", ["never opened", "longer", "shorter", "dropped"])
async def test_a_body_that_is_not_there_is_not_accepted(owner: Owner, lie: str) -> None:
    number, child = await owner.session(), owner.child
    await child.ask(lambda call: check_sender(number, call))
    await child.ask(lambda call: check_recipient(number, call))
    size_bytes = {"longer": 2, "shorter": 4}.get(lie, 3)
    if lie != "never opened":
        child.say(wire.OpenBody(number, 7))
        told, file = await child.packet(wire.BodyFile)
        assert told.call == 7
        os.write(file, b"x\r\n")
        os.close(file)
    if lie == "dropped":
        child.say(wire.DropBody(number))
    body = wire.WrittenBody(size_bytes, crc32(b"x\r\n"), False, False)
    reply = await child.ask(lambda call: accept(number, call, body=body))
    assert reply["reply"] == LOCAL_ERROR
    assert not owner.relay.spool.accepted
    await no_files(owner)


async def test_a_message_is_accepted_though_its_session_ends_with_it(owner: Owner) -> None:
    number, child = await owner.session(), owner.child
    await child.ask(lambda call: check_sender(number, call))
    await child.ask(lambda call: check_recipient(number, call))
    child.say(wire.OpenBody(number, 7))
    _, file = await child.packet(wire.BodyFile)
    os.write(file, b"x\r\n")
    os.close(file)
    body = wire.WrittenBody(3, crc32(b"x\r\n"), False, False)
    child.say(accept(number, 9, body=body), wire.Ended(number))
    assert (await child.hear(wire.CallAnswer)).call == 9
    assert len(owner.relay.spool.accepted) == 1
    await no_files(owner)


async def test_a_file_that_comes_after_its_session_is_removed(owner: Owner) -> None:
    number, child = await owner.session(), owner.child
    child.say(wire.OpenBody(number, 7), wire.Ended(number))
    _, file = await child.packet(wire.BodyFile)
    os.close(file)
    await no_files(owner)


@pytest.mark.parametrize("keeps_it", [True, False])
async def test_a_child_cannot_change_what_it_has_handed_over(owner: Owner, keeps_it: bool) -> None:
    spool, written = owner.relay.spool, b"pay to A\r\n"
    spool.gate = asyncio.Event()
    number, child = await owner.session(), owner.child
    await child.ask(lambda call: check_sender(number, call))
    await child.ask(lambda call: check_recipient(number, call))
    child.say(wire.OpenBody(number, 7))
    _, file = await child.packet(wire.BodyFile)
    os.write(file, written)
    inode = os.fstat(file).st_ino
    if not keeps_it:
        os.close(file)
    body = wire.WrittenBody(len(written), crc32(written), False, False)
    child.say(accept(number, 9, body=body))
    await asyncio.wait_for(spool.committing.wait(), WAIT_S)
    (path,) = owner.folder.iterdir()
    if keeps_it:
        os.pwrite(file, b"E", written.index(b"A"))
        os.close(file)
    assert path.read_bytes() == written
    assert (path.stat().st_ino == inode) is not keeps_it  # nothing is copied without need
    spool.gate.set()
    await until(lambda: spool.accepted)
    await no_files(owner)


async def test_a_child_that_opens_many_files_has_one_of_each_session(owner: Owner) -> None:
    number, child = await owner.session(), owner.child
    for call in range(50):
        child.say(wire.OpenBody(number, call))
        _, file = await child.packet(wire.BodyFile)
        os.close(file)
    assert len(files(owner)) < 50
    assert await child.ask(lambda call: check_sender(number, call)) == ""  # the files were answers
    child.die()
    await owner.ended(child)
    await no_files(owner)


async def test_a_child_keeps_no_sessions_for_ever(owner: Owner, monkeypatch) -> None:
    monkeypatch.setattr(keeper_module, "_SESSIONS_MAX", 3)
    child = owner.child
    for _ in range(3):
        await owner.session()
    with capture_logs() as logged:
        await owner.client()
        await owner.ended(child)
    assert "it has 3 sessions, and ends none" in error_in(logged)
    await owner.accepts()


async def test_a_child_that_reads_nothing_is_ended(owner: Owner, monkeypatch) -> None:
    monkeypatch.setattr(owner_module, "_UNREAD_BYTES_MAX", 100_000)
    number, child = await owner.session(), owner.child
    for _ in range(3000):
        owner.keeper.use()
    await asyncio.sleep(0)
    with capture_logs() as logged:
        child.say(check_sender(number, 1))
        await owner.ended(child)
    assert "the child reads no answers" in error_in(logged)
    await owner.accepts()


class Silent(Child):
    """It never says that it is ready."""

    is_quiet = True


async def test_a_child_that_is_never_ready_is_an_error_of_the_start(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(keeper_module, "_START_S", 0.05)
    with pytest.raises(OSError, match=r"did not start: it was not ready within 0\.05 seconds"):
        async with owner_of(tmp_path, monkeypatch, Silent):
            pass
    assert Child.started[-1].has_ended()


async def test_a_flood_of_refusals_leaves_the_owner_time(owner: Owner) -> None:
    number, child = await owner.session(), owner.child
    refused = RefusedCommand(
        command="RCPT", reply="550 5.1.1 No", sender="s" * 100, recipients=(LOCAL,)
    )
    flood = framed(wire.Refused(number, refused, SessionClaims("client.test"))) * 20_000
    longest_s = 0.0
    with capture_logs():
        sending = asyncio.create_task(asyncio.to_thread(child.say_octets, flood))
        while not sending.done():
            began_s = time.thread_time()
            await asyncio.sleep(0)
            longest_s = max(longest_s, time.thread_time() - began_s)
        await sending
    assert longest_s < 1
    assert await child.ask(lambda call: check_sender(number, call)) == ""
