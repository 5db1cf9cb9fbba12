"""A reload applies the reloadable keys, and names the others that differ."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from relay.base.settings.reader import load
from relay.base.settings.reloadable_keys import apply_reloadable
from relay.base.settings.tree import Settings
from tests.support.relay_config import changed, configuration, to_toml


@pytest.fixture
def settings(tmp_path: Path) -> Any:
    """Settings of the usual test configuration with some keys changed."""

    def read(**changes: Any) -> Settings:
        file = tmp_path / "relay.toml"
        file.write_text(to_toml(changed(configuration(None, 25), changes)))
        return load(file, {})

    return read


def test_only_reloadable_keys_are_applied(settings, tmp_path) -> None:
    active = settings()
    read = settings(
        hostname="other.example.test",
        policy={"directory": "rules"},
        spool={"keep": "3d"},
        mailboxes={"accounts": "people.toml", "domains": ["other.test"], "store": "second"},
        route=[{"domain": "*", "next_hop": "capture"}],
    )
    applied, changes = apply_reloadable(active, read)
    assert applied.policy.directory == tmp_path / "rules"
    assert applied.mailboxes.accounts == tmp_path / "people.toml"
    assert applied.mailboxes.domains == ("other.test",)
    assert [one.next_hop for one in applied.route] == ["capture"]
    kept = replace(
        read,
        hostname=active.hostname,
        spool=active.spool,
        mailboxes=replace(read.mailboxes, store=active.mailboxes.store),
    )
    assert applied == kept
    assert changes == ("hostname", "mailboxes.store", "spool.keep")
