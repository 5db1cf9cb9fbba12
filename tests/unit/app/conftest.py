import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from relay.accounts.directory import load_accounts
from relay.app.compose import RelayDependencies, compose
from relay.app.daemon import Daemon
from relay.clock import SystemClock
from relay.policy.rule_files import load_rules
from relay.settings.reader import load
from relay.settings.tree import Settings
from tests.support.relay_config import account, changed, configuration, to_toml


@pytest.fixture
def settings_with(tmp_path: Path) -> Callable[..., Settings]:
    """The settings of a relay under test, with some keys changed."""

    def settings_with(**changes) -> Settings:
        base = configuration(None, 9) | {"delivery": {"retry": [0.2], "shutdown_grace": "1s"}}
        (tmp_path / "relay.toml").write_text(to_toml(changed(base, changes)))
        accounts = tmp_path / "accounts.toml"
        accounts.write_text(to_toml({"account": [account("alice")]}))
        accounts.chmod(0o600)
        (tmp_path / "policies").mkdir(exist_ok=True)
        return load(tmp_path / "relay.toml", {})

    return settings_with


@pytest.fixture
def composed() -> Callable[[Settings], Daemon]:
    """A daemon of these settings, not started."""

    def composed(settings: Settings, *, crash_at: str = "") -> Daemon:
        boxes = settings.mailboxes
        accounts = load_accounts(boxes.accounts, boxes.domains, clock=SystemClock(), environ={})
        rules = load_rules(settings.policy.directory, local_domains=boxes.domains)
        return compose(settings, RelayDependencies(accounts, lambda: rules, crash_at=crash_at))

    return composed


@pytest.fixture
def open_files(tmp_path: Path) -> Callable[[], list[str]]:
    """Which files below this test's folder the process has open."""

    def open_files() -> list[str]:
        found = []
        for descriptor in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # the listing's own
                found.append(str(descriptor.readlink()))
        return [one for one in found if one.startswith(str(tmp_path))]

    return open_files
