"""Which rights accounts lose when a reload is refused: none is gained, and no address goes."""

from pathlib import Path
from typing import Any

from relay.base.accounts.accounts_file import load_accounts
from relay.base.accounts.directory import AccountTables
from relay.base.accounts.lost_rights import without_lost_rights
from relay.base.clock import SystemClock
from tests.support.relay_config import account, to_toml
from tests.support.tables import each_row

ALICE, BOB, SALES, TEAM = (f"{name}@example.test" for name in ("alice", "bob", "sales", "team"))
NEW = {"password": "plain:new", "token": "plain:new"}
NONE = {"password": "", "token": ""}
ENDED = NONE | {"disabled": True}
APP = {"client_id": "app", "client_secret": "plain:s"}


def load(folder: Path, alice: dict[str, Any] | None, **more: Any) -> AccountTables:
    file = folder / "accounts.toml"
    own = [] if alice is None else [account("alice", **more) | alice]
    file.write_text(to_toml({"account": [*own, account("bob")]}))
    file.chmod(0o600)
    return load_accounts(file, ["example.test"], clock=SystemClock(), environ={}).tables


def held(tables: AccountTables) -> Any:
    clients = [(one.account, one.secret_digest, secret) for one, secret in tables.clients.values()]
    return tables.accounts, tables.by_address, tables.by_token, tables.passwords, clients


@each_row(
    "before, now, left",
    [
        ({}, {}, {}),
        ({}, {"password": ""}, {"password": ""}),
        ({}, NEW, NONE),
        (NONE, NEW, NONE),
        ({}, {"disabled": True}, ENDED),
        (APP, {"disabled": True}, ENDED),
        ({"disabled": True}, {}, ENDED),
        (APP | {"role": "read"}, None, ENDED | {"scopes": []}),
        (APP, {}, {}),
        (APP, APP | {"client_secret": "plain:new"}, {}),
        ({"role": "operate"}, {"role": "read"}, {"role": "read"}),
        ({"role": "read"}, {"role": "operate"}, {"role": "read"}),
        ({}, {"scopes": ["Mail.Send"]}, {"scopes": ["Mail.Send", "SMTP.Send"]}),
        (
            {"scopes": ["Mail.ReadWrite", "Mail.Send"]},
            {"scopes": ["Mail.Read", "SMTP.Send"]},
            {"scopes": ["Mail.Read", "SMTP.Send"]},
        ),
        ({"scopes": ["Mail.Read"]}, {"scopes": ["Mail.ReadWrite"]}, {"scopes": ["Mail.Read"]}),
        (
            {"scopes": ["Mail.ReadWrite"]},
            {"scopes": ["Mail.ReadWrite", "Mail.Read"]},
            {"scopes": ["Mail.ReadWrite"]},
        ),
        (
            {"send_as": ["a@x.test", "*@y.test"]},
            {"send_as": ["*@y.test"]},
            {"send_as": ["*@y.test"]},
        ),
        ({"send_as": ["a@x.test"]}, {"send_as": ["*@x.test"]}, {"send_as": ["a@x.test"]}),
        ({"acts_for": ["*@example.test"]}, {"acts_for": [BOB]}, {"acts_for": [BOB]}),
    ],
)
def test_what_is_lost(before: Any, now: Any, left: Any, tmp_path: Path) -> None:
    running, in_file = load(tmp_path, before, aliases=[SALES]), load(tmp_path, now, aliases=[SALES])
    expected = load(tmp_path, left, aliases=[SALES])
    found, losers = without_lost_rights(running, in_file)
    assert held(found) == held(expected)
    assert losers == ([ALICE] if held(running) != held(expected) else [])
    assert without_lost_rights(found, in_file) == (found, [])


@each_row(
    "now, left",
    [
        ({}, [SALES]),
        ({"aliases": [TEAM]}, []),
        ({"aliases": [], "send_as": [SALES]}, [SALES]),
        ({"aliases": [SALES], "disabled": True}, []),
    ],
)
def test_from_which_aliases_an_account_still_sends(
    now: Any, left: list[str], tmp_path: Path
) -> None:
    """Mail to all of them still arrives, and nobody else sends from them."""
    running, in_file = load(tmp_path, {}, aliases=[SALES]), load(tmp_path, now, aliases=[SALES])
    found, losers = without_lost_rights(running, in_file)
    alice, bob = (found.by_address[address] for address in (SALES, BOB))
    assert alice.address == ALICE
    assert [one for one in (SALES, TEAM) if alice.may_send_as(one)] == left
    assert not bob.may_send_as(SALES)
    named = [] if left else [f"{ALICE} as {SALES}"]
    assert losers == ([ALICE] if "disabled" in now else named)
    assert without_lost_rights(found, in_file) == (found, [])
    restored, _ = without_lost_rights(found, running)
    assert [one for one in (SALES, TEAM) if restored.by_address[SALES].may_send_as(one)] == left
