"""Strangers who guess passwords from many addresses, in virtual time: a check takes a tenth of a
second in one of two threads, all else is real.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from itertools import chain, count, cycle, islice, repeat
from pathlib import Path
from typing import Any

import async_solipsism
import pytest
from msgspec import Struct, field

from relay.base.accounts.account import LoginDelayedError
from relay.base.accounts.accounts_file import load_accounts
from relay.base.accounts.check_queue import WAIT_S, WAITING_MAX
from relay.base.accounts.password_schemes import Password
from relay.base.accounts.passwords import FREE_FAILURES, PasswordChecker
from relay.base.clock import SystemClock

CHECK_S = 0.1
FORGOTTEN_S = 61.0  # by then no password is remembered
RIGHT = Password(plain=b"right", scheme="PLAIN")  # everybody's


@pytest.fixture(autouse=True)
def pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the pace of a relay."""
    monkeypatch.setattr("relay.base.accounts.check_queue.PACE_S", 1.0)


class VirtualLoop(async_solipsism.EventLoop):
    """An event loop whose time passes when nothing else is to be done."""

    def __init__(self) -> None:
        super().__init__()
        self._threads = asyncio.Semaphore(2)

    def run_in_executor(
        self, _executor: Any, compare: Callable[[str], bool], given: str
    ) -> asyncio.Task[bool]:
        return self.create_task(self._in_thread(compare, given))

    async def _in_thread(self, compare: Callable[[str], bool], given: str) -> bool:
        async with self._threads:
            await asyncio.sleep(CHECK_S)
            return compare(given)


class VirtualClock(SystemClock):
    """The time of a VirtualLoop."""

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


class Login(Struct, frozen=True):
    """What became of a login: `is_right` is None if its password was not checked."""

    user: str
    is_right: bool | None
    wait_s: float


Places = Iterable[tuple[str, str]]  # users, each with the address of a client


class World(Struct):
    """The passwords of a relay, and the guesses of strangers."""

    checker: PasswordChecker = field(
        default_factory=lambda: PasswordChecker(VirtualClock(), rng=bytes)
    )
    strangers: list[asyncio.Task[None]] = field(default_factory=list)
    guesses: list[Login] = field(default_factory=list)

    async def log_in(self, user: str, client: str, given: str = "right") -> Login:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        try:
            is_right = await self.checker.check(user, RIGHT, given, client=client)
        except LoginDelayedError:
            is_right = None
        return Login(user, is_right, round(loop.time() - began_s, 3))

    async def one_by_one(self, places: Places, *, pause_s: float) -> list[Login]:
        """Have users log in; none waits for the answer that another one gets."""
        tasks = []
        for user, client in places:
            tasks.append(asyncio.create_task(self.log_in(user, client)))
            await asyncio.sleep(pause_s)
        return await asyncio.gather(*tasks)

    def attack(self, users: Iterable[str], clients: Iterable[str], given: str = "") -> None:
        """Have a stranger guess, one guess after the other, with the pause that a session makes."""

        async def guess_on() -> None:
            for number, user, client in zip(count(), users, clients, strict=False):
                login = await self.log_in(user, client, given or f"guess {number}")
                self.guesses.append(login)
                await asyncio.sleep(1.0 + number % 7 / 10)

        self.strangers.append(asyncio.create_task(guess_on()))


def play(scene: Callable[[World], Coroutine[Any, Any, None]]) -> None:
    async def playing() -> None:
        world = World()
        try:
            await scene(world)
        finally:
            world.checker.close()

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(playing())


def users(name: str) -> Iterable[str]:
    return (f"{name}{number}@example.test" for number in count())


def clients(network: str) -> Iterable[str]:
    """Yield addresses of another client each, those of IPv6 of another network as well."""
    return (network.format(number) for number in count(1))


HOME, OFFICE = "192.0.2.1", "192.0.2.2"
NETWORKS = "2001:db8:{:x}::1"


def test_guesses_keep_nobody_from_logging_in() -> None:
    """40 strangers guess from one /48, at one user and at each of 40. 200 guess from another one,
    and 150 from a further one for each guess, at users who do not exist. An account logs in from
    ever more addresses.
    """

    async def scene(world: World) -> None:
        known = [*zip(users("known"), islice(clients("192.0.2.{}"), 200), strict=False)]
        before = await world.one_by_one(known, pause_s=CHECK_S)
        assert [login.is_right for login in before] == [True] * 200
        await asyncio.sleep(FORGOTTEN_S)
        of_one, of_other = clients("2001:db8:0:{:x}::1"), clients("2001:db8:ffff:{:x}::1")
        networks = clients(NETWORKS)
        for victim, _ in known[:40]:
            world.attack(chain.from_iterable(repeat((victim, known[0][0]))), of_one)
        for number in range(350):
            clients_of_stranger = of_other if number < 200 else networks
            world.attack(users(f"nobody{number}-"), clients_of_stranger)
        for _ in range(10):
            world.attack(repeat("flood@example.test"), networks, "right")
        began_s = asyncio.get_running_loop().time()
        at_once = await asyncio.gather(*(world.log_in(*place) for place in known[:20]))
        new = zip(users("new"), islice(clients("198.51.100.{}"), 50), strict=False)
        at_office = zip(users("office"), repeat("203.0.113.1", 40), strict=False)
        again, *first = await asyncio.gather(
            world.one_by_one(known[20:], pause_s=0.12),
            world.one_by_one(new, pause_s=0.4),
            world.one_by_one(at_office, pause_s=CHECK_S),
        )
        seconds = asyncio.get_running_loop().time() - began_s
        assert [login for login in at_once + again if not login.is_right] == []
        assert max(login.wait_s for login in at_once) <= (len(at_once) / 2 + 1) * CHECK_S
        assert max(login.wait_s for login in again) <= 2 * CHECK_S
        for logins in first:
            assert sum(not login.is_right for login in logins) <= len(logins) / 10
        checked = Counter(login.user for login in world.guesses if login.is_right is not None)
        assert max(checked.values()) <= seconds + 1

    play(scene)


def test_guesses_at_one_user_delay_no_other_one_and_not_this_one_where_it_has_logged_in() -> None:
    async def scene(world: World) -> None:
        known = [("alice", HOME), *((f"known{number}", OFFICE) for number in range(9))]
        assert all(login.is_right for login in await world.one_by_one(known, pause_s=CHECK_S))
        await asyncio.sleep(FORGOTTEN_S)
        guessing = [
            asyncio.create_task(world.log_in("alice", client, "guess"))
            for client in islice(clients(NETWORKS), WAITING_MAX + 1)
        ]
        await asyncio.sleep(CHECK_S / 2)
        new = asyncio.create_task(world.log_in("bob", OFFICE))
        again = await asyncio.gather(*(world.log_in(user, client) for user, client in known))
        assert all(login.is_right for login in again)
        assert max(login.wait_s for login in again) <= (len(known) / 2 + 1) * CHECK_S
        assert (await new).is_right
        assert (await new).wait_s <= 1
        guesses = await asyncio.gather(*guessing)
        assert [login.is_right for login in guesses].count(False) <= WAIT_S + 1
        refused_s = {login.wait_s for login in guesses if login.is_right is None}
        assert refused_s == {CHECK_S / 2, WAIT_S}

    play(scene)


def test_who_waits_in_vain_has_not_failed() -> None:
    async def scene(world: World) -> None:
        others = islice(clients(NETWORKS), int(WAIT_S) + 2)
        async with asyncio.TaskGroup() as tasks:
            for client in others:
                tasks.create_task(world.log_in("alice", client, "guess"))
            late = [
                tasks.create_task(world.log_in("alice", HOME, f"guess {number}"))
                for number in range(FREE_FAILURES)
            ]
        answers = [(one.result().is_right, one.result().wait_s) for one in late]
        assert answers == [(None, WAIT_S)] * FREE_FAILURES
        assert (await world.log_in("alice", HOME)).is_right

    play(scene)


def test_a_user_who_fails_where_it_has_logged_in_delays_no_other_one() -> None:
    async def scene(world: World) -> None:
        mallory = [*zip(repeat("mallory"), islice(clients(NETWORKS), 30), strict=False)]
        for user, client in [("alice", HOME), *mallory]:
            assert (await world.log_in(user, client)).is_right
        await asyncio.sleep(FORGOTTEN_S)
        for user, client in mallory * 2:
            world.attack([user], [client])
        await asyncio.sleep(1.5 * CHECK_S)
        alice, bob = await asyncio.gather(world.log_in("alice", HOME), world.log_in("bob", OFFICE))
        assert (alice.is_right, bob.is_right) == (True, True)
        assert max(alice.wait_s, bob.wait_s) <= 3 * CHECK_S

    play(scene)


def test_the_clients_of_a_network_take_turns() -> None:
    async def scene(world: World) -> None:
        for user in islice(users("nobody"), 9):
            world.attack([user], ["2001:db8:0:1::1"])
        await asyncio.sleep(1.5 * CHECK_S)
        assert (await world.log_in("alice", "2001:db8:0:2::1")).wait_s <= 2 * CHECK_S

    play(scene)


@pytest.mark.parametrize(
    ("guessing", "client"), [(NETWORKS, "127.0.0.1"), ("127.0.0.1", "192.0.2.{}")]
)
def test_users_of_a_proxy_on_this_machine_take_turns_with_all_others(
    guessing: str, client: str
) -> None:
    async def scene(world: World) -> None:
        networks = clients(guessing)
        for number in range(200):
            world.attack(users(f"nobody{number}-"), networks)
        await asyncio.sleep(1.5 * CHECK_S)
        places = zip(islice(users("new"), 50), clients(client), strict=False)
        logins = await world.one_by_one(places, pause_s=2 * CHECK_S)
        assert all(login.is_right for login in logins)
        assert max(login.wait_s for login in logins) <= 3 * CHECK_S

    play(scene)


def test_an_unknown_user_waits_as_long_as_a_known_one(tmp_path: Path) -> None:
    file = tmp_path / "accounts.toml"
    file.write_text('[[account]]\naddress = "alice@example.test"\npassword = "plain:right"\n')
    file.chmod(0o600)

    async def scene(_: World) -> None:
        accounts = load_accounts(file, ["example.test"], clock=VirtualClock(), environ={})
        loop = asyncio.get_running_loop()
        answered_s: dict[str, list[float]] = {"alice": [], "nobody": []}

        async def guess(name: str, client: str) -> None:
            with suppress(LoginDelayedError):
                await accounts.by_password(f"{name}@example.test", "guess", client=client)
            answered_s[name].append(loop.time())

        async with asyncio.TaskGroup() as tasks:
            for name, client in zip(cycle(answered_s), islice(clients(NETWORKS), 80), strict=False):
                tasks.create_task(guess(name, client))
        accounts.close()
        assert len({*answered_s["alice"]}) >= WAIT_S
        assert answered_s["nobody"] == pytest.approx(answered_s["alice"], abs=1.5 * CHECK_S)

    play(scene)
