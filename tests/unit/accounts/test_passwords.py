"""Checks of passwords are shared, remembered for a while, bounded, and slower for guessers."""

import asyncio
import threading
from dataclasses import dataclass, field

import pytest

from relay.accounts.passwords import PasswordChecker
from relay.accounts.secrets import Password
from relay.clock import ManualClock


@dataclass(frozen=True)
class Counted(Password):
    """A stored password that counts how often it is compared, and can make its checks wait."""

    plain: bytes = b"right"
    calls: list[str] = field(default_factory=list)
    may_go: threading.Event = field(default_factory=threading.Event)

    def matches(self, given: str) -> bool:
        self.calls.append(given)
        self.may_go.wait(10)
        return super().matches(given)


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def checker(clock):
    made = PasswordChecker(clock, chance=bytes)
    yield made
    made.close()


@pytest.fixture
def stored():
    made = Counted()
    made.may_go.set()
    return made


async def test_a_success_is_remembered_for_a_minute(checker, clock, stored):
    assert await checker.check("u", stored, "right")
    assert await checker.check("u", stored, "right")
    assert stored.calls == ["right"]
    clock.advance(61)
    assert await checker.check("u", stored, "right")
    assert stored.calls == ["right", "right"]


async def test_a_remembered_success_is_no_success_of_others(checker, stored):
    assert await checker.check("u", stored, "right")
    assert not await checker.check("u", stored, "wrong")
    assert await checker.check("v", stored, "right")
    assert stored.calls == ["right", "wrong", "right"]


async def test_guessers_wait_ever_longer_but_the_remembered_owner_does_not(checker, clock, stored):
    assert await checker.check("u", stored, "right")
    for guess in ("a", "b", "c", "d"):
        assert not await checker.check("u", stored, guess)
    assert stored.calls == ["right", "a", "b", "c"]  # d was refused unseen
    assert await checker.check("u", stored, "right")
    clock.advance(1.1)
    assert not await checker.check("u", stored, "e")
    clock.advance(1.1)
    assert not await checker.check("u", stored, "f")  # the second back-off is two seconds
    assert stored.calls[-1] == "e"


async def test_a_right_password_after_the_back_off_ends_it(checker, clock, stored):
    for guess in ("a", "b", "c"):
        await checker.check("u", stored, guess)
    assert not await checker.check("u", stored, "right")
    clock.advance(1.1)
    assert await checker.check("u", stored, "right")


async def test_sessions_that_open_together_share_one_check(checker, stored):
    stored.may_go.clear()
    checks = [asyncio.create_task(checker.check("u", stored, "right")) for _ in range(50)]
    await asyncio.sleep(0)
    stored.may_go.set()
    assert await asyncio.gather(*checks) == [True] * 50
    assert stored.calls == ["right"]


async def test_a_client_that_leaves_early_has_still_guessed(checker, stored):
    for guess in ("a", "b", "c"):
        stored.may_go.clear()
        leaving = asyncio.create_task(checker.check("u", stored, guess))
        await asyncio.sleep(0)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        stored.may_go.set()
        await asyncio.wait(list(checker._running.values()))  # it goes on without the client
    await checker.check("u", stored, "d")
    assert "d" not in stored.calls


async def test_who_waits_when_the_accounts_are_renewed_is_refused(checker, stored):
    stored.may_go.clear()
    checks = [asyncio.create_task(checker.check(f"u{n}", stored, "right")) for n in range(5)]
    while len(stored.calls) < 2:  # both threads are busy, the others wait
        await asyncio.sleep(0)
    checker.close()
    stored.may_go.set()
    assert await asyncio.gather(*checks) == [True, True, False, False, False]


async def test_too_many_at_once_are_refused_unseen(checker, stored):
    stored.may_go.clear()
    checks = [asyncio.create_task(checker.check(f"u{n}", stored, "right")) for n in range(32)]
    await asyncio.sleep(0)
    assert not await checker.check("one more", stored, "right")
    stored.may_go.set()
    assert all(await asyncio.gather(*checks))


async def test_an_endless_password_is_refused_unseen(checker, stored):
    assert not await checker.check("u", stored, "x" * 2000)
    assert stored.calls == []
