import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from relay.base.accounts.accounts_file import load_accounts
from relay.base.clock import SystemClock
from relay.base.settings.tree import Settings
from relay.base.shares import REFUSALS
from relay.operation.app.compose import compose
from relay.operation.app.daemon import Daemon
from relay.operation.app.foundation import RelayDependencies
from relay.transport.policy.rule_book import RuleBook
from relay.transport.policy.rule_files import load_rules
from tests.support.relay_config import written_settings


@pytest.fixture
def settings_with(tmp_path: Path) -> Callable[..., Settings]:
    """The settings of a relay under test, with some keys changed."""

    return lambda **changes: written_settings(tmp_path, changes)


@pytest.fixture
def composed() -> Callable[[Settings], Daemon]:
    """A daemon of these settings, not started."""

    def composed(settings: Settings, **sources: Any) -> Daemon:
        REFUSALS._last_s.clear()  # of other tests in this process
        boxes = settings.mailboxes
        accounts = load_accounts(boxes.accounts, boxes.domains, clock=SystemClock(), environ={})
        rules = load_rules(settings.policy.directory, local_domains=boxes.domains)
        return compose(settings, RelayDependencies(accounts, lambda: RuleBook(rules), **sources))

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
