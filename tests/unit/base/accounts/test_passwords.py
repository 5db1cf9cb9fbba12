"""Checks of passwords are shared, remembered for a while, bounded, and slower for guessers."""

import asyncio
import threading
from collections.abc import Callable
from datetime import timedelta

import pytest
from argon2.exceptions import VerificationError
from msgspec import field

from relay.base.accounts.account import LoginDelayedError
from relay.base.accounts.password_schemes import Password
from relay.base.accounts.passwords import (
    CLIENTS_MAX,
    ENTRIES_MAX,
    FREE_FAILURES_OF_CLIENT,
    FailureTable,
    SuccessTable,
)
from relay.base.socket_address import client_of
from tests.support.events import until
from tests.support.tables import each_row

SECOND = timedelta(seconds=1)  # a number would be equal to True
HOME, OFFICE, STRANGER = "192.0.2.1", "2001:db8:1:2::7", "198.51.100.9"


class Counted(Password, frozen=True):
    """A stored password that counts how often it is compared, and can make its checks wait."""

    plain: bytes = b"right"
    calls: list[str] = field(default_factory=list)
    may_go: threading.Event = field(default_factory=threading.Event)
    fault: Exception | None = None

    def matches(self, given: str) -> bool:
        self.calls.append(given)
        self.may_go.wait(10)
        if self.fault:
            raise self.fault
        return super().matches(given)


@pytest.fixture
def stored():
    made = Counted()
    made.may_go.set()
    return made


@pytest.fixture
def login(checker, stored) -> Callable:
    """Log in: True, False, or how long to wait until it would be checked."""

    async def log_in(given: str, client: str, *, user: str = "u") -> bool | timedelta:
        try:
            return await checker.check(user, stored, given, client=client)
        except LoginDelayedError as delayed:
            return timedelta(seconds=delayed.retry_after_s)

    return log_in


async def guess_thrice(login, client: str) -> None:
    for guess in ("a", "b", "c"):
        assert await login(guess, client) is False


async def test_a_success_is_remembered_for_a_minute(login, clock, stored):
    assert await login("right", HOME) is True
    assert await login("right", HOME) is True
    assert stored.calls == ["right"]
    clock.advance(61)
    assert await login("right", HOME) is True
    assert stored.calls == ["right", "right"]


async def test_a_remembered_success_is_no_success_of_others(login, stored):
    assert await login("right", HOME) is True
    assert await login("wrong", HOME) is False
    assert await login("right", HOME, user="v") is True
    assert await login("right", STRANGER) is True
    assert stored.calls == ["right", "wrong", "right", "right"]


@pytest.mark.parametrize("client", [HOME, OFFICE, "127.0.0.1", "::1", ""])
async def test_guessers_wait_ever_longer(login, clock, stored, client):
    await guess_thrice(login, client)
    waits = []
    for number in range(8):
        waits.append(await login("right", client))
        clock.advance(waits[-1].total_seconds() + 0.1)
        assert await login(f"guess {number}", client) is False
    assert [wait / SECOND for wait in waits] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert "right" not in stored.calls  # it was refused unseen, and nobody heard that it was right


async def test_a_right_password_after_the_back_off_ends_it(login, clock):
    await guess_thrice(login, HOME)
    clock.advance(1.1)
    assert await login("right", HOME) is True
    clock.advance(61)
    for guess in ("a", "b"):
        assert await login(guess, HOME) is False
    assert await login("right", HOME) is True


async def fail_for_many(login, client: str, users: int = FREE_FAILURES_OF_CLIENT) -> None:
    for number in range(users):
        assert await login("guess", client, user=f"user {number}") is False


@pytest.mark.parametrize("other", ["192.0.2.2", "2001:db8:1:3::7", "127.0.0.1"])
@pytest.mark.parametrize("client", [STRANGER, OFFICE])
async def test_who_tries_many_users_from_one_address_waits(login, client, other):
    await fail_for_many(login, client)
    assert await login("right", client) == SECOND
    assert await login("right", other) is True


async def test_the_addresses_of_one_network_are_one_client(login):
    for number in range(FREE_FAILURES_OF_CLIENT):
        await login("guess", f"2001:db8:1:2::{number:x}", user=f"user {number}")
    assert await login("right", "2001:db8:1:2:ffff::1") == SECOND
    assert await login("right", "2001:db8:1:1::1") is True


async def test_who_has_logged_in_before_does_not_wait_for_neighbours(login, clock):
    assert await login("right", OFFICE) is True
    clock.advance(3600)
    await fail_for_many(login, OFFICE)
    assert await login("right", OFFICE) is True
    await guess_thrice(login, OFFICE)  # what it bought is no way to guess for ever
    assert await login("right", OFFICE) == SECOND


def test_no_user_pushes_out_clients_of_others():
    table = SuccessTable()
    table.add(("alice", HOME), b"", 0.0)
    for number in range(ENTRIES_MAX + 1):
        table.add(("mallory", f"client {number}"), b"", 0.0)
    assert ("alice", HOME) in table
    clients = [number for number in range(ENTRIES_MAX) if ("mallory", f"client {number}") in table]
    assert len(clients) == CLIENTS_MAX - 1
    for number in range(ENTRIES_MAX):
        table.add((f"user {number}", HOME), b"", 0.0)
    assert ("alice", HOME) not in table  # whose login is the longest ago


@pytest.mark.parametrize("client", ["127.0.0.1", "::1", ""])
async def test_a_reverse_proxy_on_this_machine_does_not_make_its_users_one(login, client):
    await fail_for_many(login, client, 50)
    assert await login("right", client) is True


async def test_failures_are_forgotten_in_time(login, clock):
    for guess in ("a", "b"):
        await login(guess, STRANGER)
    await fail_for_many(login, STRANGER, FREE_FAILURES_OF_CLIENT - 3)
    clock.advance(901)
    assert await login("c", STRANGER) is False
    assert await login("right", STRANGER) is True


async def test_sessions_that_open_together_share_one_check(login, stored):
    stored.may_go.clear()
    checks = [asyncio.create_task(login("right", HOME)) for _ in range(50)]
    await asyncio.sleep(0)
    stored.may_go.set()
    assert await asyncio.gather(*checks) == [True] * 50
    assert stored.calls == ["right"]


async def test_guesses_at_the_same_time_are_no_more_than_one_after_another(login, clock, stored):
    stored.may_go.clear()
    guesses = [asyncio.create_task(login(f"guess {number}", HOME)) for number in range(20)]
    await asyncio.sleep(0)
    stored.may_go.set()
    answers = await asyncio.gather(*guesses)
    assert [one for one in answers if one is False] == [False] * 3
    assert len(stored.calls) == 3
    clock.advance(1.1)
    stored.may_go.clear()
    guesses = [asyncio.create_task(login(f"more {number}", HOME)) for number in range(20)]
    await asyncio.sleep(0)
    stored.may_go.set()
    await asyncio.gather(*guesses)
    assert len(stored.calls) == 4


async def test_a_client_that_leaves_early_has_still_guessed(checker, login, stored):
    for guess in ("a", "b", "c"):
        stored.may_go.clear()
        leaving = asyncio.create_task(login(guess, HOME))
        await asyncio.sleep(0)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        stored.may_go.set()
        await asyncio.wait(list(checker._running.values()))  # it goes on without the client
    assert await login("d", HOME) == SECOND
    assert "d" not in stored.calls


async def test_who_logs_in_while_the_accounts_are_renewed_tries_again(checker, login):
    """A reload closes the checker in a thread, at any moment of a login."""
    checker.close()
    assert await login("right", HOME) == SECOND


async def test_who_waits_when_the_accounts_are_renewed_tries_again(checker, login, stored):
    stored.may_go.clear()
    checks = [asyncio.create_task(login("right", HOME, user=f"u{n}")) for n in range(5)]
    await until(lambda: stored.calls)  # one is checked, the others wait
    checker.close()
    stored.may_go.set()
    assert await asyncio.gather(*checks) == [True, SECOND, SECOND, SECOND, SECOND]


async def test_what_cannot_be_computed_is_no_wrong_password(checker, clock):
    short_of_memory = Counted(fault=VerificationError("Memory allocation error"))
    short_of_memory.may_go.set()
    for _ in range(5):
        with pytest.raises(LoginDelayedError) as caught:
            await checker.check("u", short_of_memory, "right", client=HOME)
        assert caught.value.retry_after_s == 1
        assert isinstance(caught.value.__cause__, VerificationError)


async def test_an_endless_password_is_refused_unseen(login, stored):
    assert await login("x" * 2000, HOME) is False
    assert stored.calls == []


@each_row(
    "address, client",
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("127.0.0.2", "127.0.0.2"),
        ("::1", "::1"),
        ("", ""),
        ("nonsense", ""),
    ],
)
def test_client_of(address, client):
    assert client_of(address) == client


def test_a_flood_of_keys_takes_no_memory_and_pushes_out_nobody_who_waits():
    table = FailureTable(3, entries_max=100)
    for _ in range(3):
        table.add("guesser", 0.0)
    for number in range(10_000):
        table.add(f"flood {number}", 0.5)
        assert len(table) <= 100
    assert table.wait_s("guesser", 0.5) == 0.5


def test_a_table_full_of_those_who_wait_counts_newcomers_as_one():
    table = FailureTable(3, entries_max=100)
    for number in range(100):
        for _ in range(6):
            table.add(f"flood {number}", 0.0)
    for number in range(3):
        assert table.wait_s(f"newcomer {number}", 1.0) == 0
        table.add(f"newcomer {number}", 1.0)
    assert table.wait_s("newcomer 3", 1.0) == 1.0
    assert table.wait_s("flood 0", 1.0) == 7.0
    assert len(table) == 100
    table.add("late", 10.0)  # the oldest has waited: it makes room
    assert table.count("late", 10.0) == 1
    assert table.wait_s("newcomer 4", 10.0) == 0


async def test_a_success_of_its_own_does_not_help_who_tries_many_users(login):
    await fail_for_many(login, STRANGER, FREE_FAILURES_OF_CLIENT - 1)
    assert await login("right", STRANGER, user="mallory") is True
    await login("guess", STRANGER, user="last")
    assert await login("right", STRANGER) == SECOND
