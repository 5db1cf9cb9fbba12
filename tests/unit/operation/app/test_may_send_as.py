"""Whose From pickup lets an account send: the last check before a draft leaves."""

from relay.base.accounts.account import Account
from relay.operation.app.transport import may_send_as
from tests.support.accounts import TokenAccounts
from tests.support.tables import each_row

ACCOUNTS = TokenAccounts(
    {
        "alice": Account("alice@a.test", aliases=("a@a.test",), send_as=("office@a.test",)),
        "gone": Account("gone@a.test", barred=frozenset({"gone@a.test", "b@a.test"})),
    }
)


@each_row(
    "account, address, expected",
    [
        ("alice@a.test", "Alice+tag@a.test", True),
        ("alice@a.test", "a@a.test", True),
        ("alice@a.test", "office@a.test", True),
        ("alice@a.test", "carol@a.test", False),
        ("alice@a.test", "", False),
        ("gone@a.test", "gone@a.test", True),  # disabled: what it sent before still leaves
        ("gone@a.test", "b@a.test", False),
        ("removed@a.test", "removed@a.test", True),
        ("removed@a.test", "alice@a.test", False),
    ],
)
def test_an_account_may_send_from(account: str, address: str, expected: bool) -> None:
    assert may_send_as(ACCOUNTS, account, address) is expected
