"""Which parts of a configuration must be equal on all nodes of a spool."""

from dataclasses import replace
from pathlib import Path

from relay.base.clock import SystemClock
from relay.base.settings.tree import MailboxSettings, Route, RouteAuth, Settings
from relay.operation.app.configuration import ActiveConfiguration, agreed_parts
from relay.transport.signing.keys import KeyRing
from tests.support.tables import each_row

ROUTE = Route("a.test", "smtp://mx.a.test:25")
SETTINGS = Settings(
    "relay.test",
    Path("state"),
    route=(ROUTE,),
    mailboxes=MailboxSettings(domains=("b.test", "a.test"), srs_key="k" * 32),
)


def differing(other: Settings, **more: str) -> set[str]:
    before = agreed_parts(SETTINGS, rules="r", accounts="a", keys=KeyRing())
    now = agreed_parts(other, **({"rules": "r", "accounts": "a"} | more), keys=KeyRing())
    return {name for name in before.keys() | now.keys() if before.get(name) != now.get(name)}


def with_route(**changes: object) -> Settings:
    return replace(SETTINGS, route=(replace(ROUTE, **changes),))


def with_boxes(**changes: object) -> Settings:
    return replace(SETTINGS, mailboxes=replace(SETTINGS.mailboxes, **changes))


@each_row(
    "other, parts",
    [
        (SETTINGS, set()),
        (replace(SETTINGS, hostname="two.test", state_dir=Path("other")), set()),
        (with_route(next_hop="smtp://mx.a.test:26"), {"routes"}),
        (with_route(max_connections=3), {"routes"}),
        (with_route(source_address="192.0.2.1", ca=Path("ca")), set()),
        (with_route(auth=RouteAuth("login", Path("password"))), set()),
        (with_boxes(domains=("a.test", "b.test")), set()),
        (with_boxes(domains=("a.test",)), {"local domains of the store main"}),
        (with_boxes(srs_key="l" * 32), {"srs_key"}),
        (
            with_boxes(store="second"),
            {
                f"{one} of the store {store}"
                for one in ("local domains", "accounts")
                for store in ("main", "second")
            },
        ),
    ],
)
def test_what_is_not_of_the_machine_is_compared(other: Settings, parts: set[str]) -> None:
    assert differing(other) == parts


def test_rules_and_accounts_are_compared() -> None:
    assert differing(SETTINGS, rules="s") == {"rules"}
    assert differing(SETTINGS, accounts="b") == {"accounts of the store main"}


def test_a_reload_renews_them(tmp_path: Path) -> None:
    file = tmp_path / "relay.toml"
    (tmp_path / "policies").mkdir()
    accounts = tmp_path / "accounts.toml"
    accounts.touch(mode=0o600)
    text = 'hostname = "relay.test"\nstate_dir = "state"\n[mailboxes]\naccounts = "accounts.toml"\n'
    file.write_text(
        f'{text}srs_key = "{"k" * 32}"\ndomains = ["a.test"]\n[policy]\ndirectory = "policies"\n'
    )
    active = ActiveConfiguration(file, {}, clock=SystemClock())
    before = active.agreed()
    assert active.agreed() is before
    accounts.write_text("# only a comment\n")
    active.use(active.read(lambda _: None))
    assert active.agreed() == before
    accounts.write_text('[[account]]\naddress = "x@a.test"\n')
    (tmp_path / "policies" / "10-one.toml").write_text(
        '[[rule]]\nname = "one"\nwhen = { sender = "*@b.test" }\nthen = [{ reject = "5.7.1 no" }]\n'
    )
    active.use(active.read(lambda _: None))
    after = active.agreed()
    assert {name for name in after if after[name] != before[name]} == {
        "rules",
        "accounts of the store main",
    }
    active.close()
