"""Sessions end by time, by number, by log-out, and when their account changes."""

from dataclasses import replace

import pytest

from relay.base.accounts.account import Account, Role
from relay.front_door.pages import logins
from relay.front_door.pages.logins import LIFETIME_S, SESSIONS_OF_ACCOUNT_MAX, Sessions
from tests.support.accounts import TokenAccounts
from tests.support.manual_clock import ManualClock

ALICE = Account("alice@example.test", credentials=b"1")
BOB = Account("bob@example.test")


class Fixture:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.accounts = {"a": ALICE, "b": BOB}
        self.sessions = Sessions(TokenAccounts(self.accounts), self.clock)


@pytest.fixture
def made() -> Fixture:
    return Fixture()


async def test_no_identifier_is_stored(made):
    identifier = made.sessions.begin(ALICE)
    assert identifier not in repr(vars(made.sessions))
    assert made.sessions.find(identifier + "x") is None


async def test_a_session_that_is_used_ends_after_its_lifetime(made):
    identifier = made.sessions.begin(ALICE)
    for _ in range(int(LIFETIME_S // 1000)):
        assert made.sessions.find(identifier)
        made.clock.advance(1000)
    made.clock.advance(LIFETIME_S % 1000)
    assert made.sessions.find(identifier) is None


@pytest.mark.parametrize(
    "changed",
    [
        None,
        replace(ALICE, role=Role.READ),
        replace(ALICE, credentials=b"2"),
        Account("alias@example.test", aliases=("alice@example.test",), credentials=b"1"),
    ],
    ids=["removed", "role", "password", "alias of another"],
)
def test_a_change_of_the_account_ends_its_sessions(made, changed):
    identifier, of_bob = made.sessions.begin(ALICE), made.sessions.begin(BOB)
    if changed is None:
        del made.accounts["a"]
    else:
        made.accounts["a"] = changed
    assert made.sessions.find(identifier) is None
    made.accounts["a"] = ALICE
    assert made.sessions.find(identifier) is None, "it came back"
    assert made.sessions.find(of_bob)


def test_an_account_has_a_number_of_sessions(made):
    of_bob = made.sessions.begin(BOB)
    begun = [made.sessions.begin(ALICE) for _ in range(SESSIONS_OF_ACCOUNT_MAX)]
    assert made.sessions.find(begun[0])  # begun[1] is now the least recently used
    last = made.sessions.begin(ALICE)
    assert made.sessions.find(begun[1]) is None
    assert all(made.sessions.find(one) for one in (*begun[2:], begun[0], last, of_bob))


def test_all_accounts_have_a_number_of_sessions(monkeypatch):
    monkeypatch.setattr(logins, "SESSIONS_MAX", 2)
    made = Fixture()
    begun = [made.sessions.begin(account) for account in (BOB, ALICE, BOB)]
    assert [made.sessions.find(one) is not None for one in begun] == [False, True, True]
    assert len(made.sessions) == 2
