"""Which rights accounts lose when a reload is refused: none is gained, and no address goes."""

from pathlib import Path
from typing import Any

from relay.base.accounts.account import ALL_SCOPES
from relay.base.accounts.accounts_file import load_accounts
from relay.base.accounts.directory import AccountTables
from relay.base.accounts.lost_rights import without_lost_rights
from relay.base.accounts.passwords import digest_of
from relay.base.clock import SystemClock
from tests.support.client_keys import certificate
from tests.support.relay_config import account, to_toml
from tests.support.tables import each_row

ALICE, BOB, SALES = (f"{name}@example.test" for name in ("alice", "bob", "sales"))
CERTIFICATES = [certificate("ec", number) for number in range(3)]
APP = {"client_id": "app", "client_secret": "plain:s"}


def load(tmp_path: Path, *tables: dict[str, Any]) -> AccountTables:
    file = tmp_path / "accounts.toml"
    file.write_text(to_toml({"account": tables}))
    file.chmod(0o600)
    domains = ["example.test"]
    return load_accounts(file, domains, clock=SystemClock(), environ={}).tables


def keys(*numbers: int) -> dict[str, str]:
    pem = "".join(CERTIFICATES[number].pem for number in numbers)
    return {"client_id": "app", "client_certificate": pem}


def rights(tables: AccountTables) -> set[str]:
    """What alice may do, in words."""
    alice, stored = tables.by_address[ALICE], tables.passwords.get(ALICE)
    held = {f"as {alice.role}", *alice.scopes, *alice.send_as, *alice.acts_for}
    for secret in ("alice", "new"):
        held |= {f"password {secret}"} if stored and stored.matches(secret) else set()
        held |= {f"token {secret}"} if digest_of(secret) in tables.by_token else set()
    for client, secret_of in tables.clients.values():
        assert client.account is tables.by_address[client.account.address]
        held |= {"secret"} if secret_of.matches("s") else set()
        names = frozenset().union(*(key.names for key in client.keys))
        held |= {f"key {n}" for n, one in enumerate(CERTIFICATES) if one.thumbprint() in names}
    is_barred = tables.by_address["bob@example.test"].barred >= {ALICE, SALES}
    return held | (set() if alice.is_disabled and is_barred else {"enabled"})


SECRETS = {"password alice", "token alice", "enabled"}


@each_row(
    "before, now, lost",
    [
        ({}, {}, set()),
        ({}, {"password": ""}, {"password alice"}),
        ({}, {"password": "plain:new", "token": "plain:new"}, {"password alice", "token alice"}),
        ({"token": ""}, {"token": "plain:new"}, set()),
        ({}, {"disabled": True}, SECRETS),
        (APP, {"disabled": True}, SECRETS | {"secret"}),
        ({"disabled": True}, {}, set()),
        (APP, {}, {"secret"}),
        (APP, APP | {"client_secret": "plain:new"}, {"secret"}),
        (APP, keys(0), {"secret"}),
        (APP | keys(0), keys(0), {"secret"}),
        (APP | keys(0), APP, {"key 0"}),
        (keys(0, 1), keys(1, 2), {"key 0"}),
        ({"role": "operate"}, {"role": "read"}, {"as operate"}),
        ({"role": "read"}, {"role": "operate"}, set()),
        ({}, {"scopes": ["Mail.Send"]}, {*ALL_SCOPES} - {"Mail.Send"}),
        ({"send_as": ["a@x.test", "*@y.test"]}, {"send_as": ["*@y.test"]}, {"a@x.test"}),
        ({"send_as": ["a@x.test"]}, {"send_as": ["*@x.test"]}, set()),
        ({"acts_for": ["*@example.test"]}, {"acts_for": [BOB]}, {"*@example.test"}),
        (APP | {"role": "read"}, None, SECRETS | {"secret", "as read", *ALL_SCOPES}),
    ],
)
def test_what_is_lost(before: Any, now: Any, lost: set[str], tmp_path: Path) -> None:
    alice, bob = account("alice", aliases=[SALES]), account("bob")
    running = load(tmp_path, alice | before, bob)
    in_file = load(tmp_path, *([] if now is None else [account("alice") | now]), bob)
    left, losers = without_lost_rights(running, in_file)
    # less of a role or a pattern is a right that it had
    assert rights(running) - rights(left) == lost
    assert rights(left) - rights(running) <= {"as user", "as read", BOB}
    assert losers == ([ALICE] if lost else [])
    assert {*left.by_address} == {ALICE, SALES, BOB}
    has_session_ended = left.by_address[ALICE].credentials != running.by_address[ALICE].credentials
    assert has_session_ended or lost.isdisjoint(SECRETS)
    assert without_lost_rights(left, in_file) == (left, [])
