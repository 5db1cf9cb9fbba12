"""Reloader: requests during a reload."""

import asyncio
import threading
from pathlib import Path

import pytest

from relay.app.configuration import ActiveConfiguration, route_table
from relay.app.reload import Reloader
from relay.base.clock import SystemClock
from relay.observe.metrics import Metrics
from relay.policy import rule_files
from tests.support.relay_config import written_settings

SOON_S = 30.0
RULE = '[[rule]]\nname = "{}"\nwhen = {{ subject = "x" }}\nthen = [ {{ hold = "x" }} ]\n'


@pytest.fixture
def active(tmp_path: Path):
    written_settings(tmp_path, {})
    active = ActiveConfiguration(tmp_path / "relay.toml", {}, clock=SystemClock())
    yield active
    active.close()


async def test_requests_during_a_reload_share_the_one_after_it(active, monkeypatch) -> None:
    """The running one has read the rules before they were changed."""
    reloader = Reloader(
        active,
        route_table(active.settings, active.accounts),
        clock=SystemClock(),
        metrics=Metrics(),
    )
    has_read, may_end, loads = threading.Event(), threading.Event(), []

    def slow(*values, load=rule_files.load_rules, **options):
        loads.append(load(*values, **options))
        if len(loads) == 1:
            has_read.set()
            may_end.wait(SOON_S)
        return loads[-1]

    monkeypatch.setattr("relay.app.tenant_sets.load_rules", slow)
    first = asyncio.ensure_future(asyncio.shield(reloader.request()))
    assert await asyncio.to_thread(has_read.wait, SOON_S)
    (active.settings.policy.directory / "10-a.toml").write_text(RULE.format("a"))
    later = [asyncio.ensure_future(asyncio.shield(reloader.request())) for _ in range(5)]
    reloader.request()  # SIGHUP
    await asyncio.sleep(0)
    later[0].cancel()  # a client that is gone
    may_end.set()
    async with asyncio.timeout(SOON_S):
        assert (await first).rules == 0
        assert [(await one).rules for one in later[1:]] == [1] * 4
        await reloader.end()
    assert len(loads) == 2
