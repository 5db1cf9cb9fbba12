"""Reloader: requests during a reload."""

import asyncio
import os
import threading
from pathlib import Path

import pytest

from relay.base.clock import SystemClock
from relay.base.observe.metrics import Metrics
from relay.operation.app.configuration import ActiveConfiguration, route_table
from relay.operation.app.foundation import Reloader
from relay.transport.policy import rule_files
from tests.support.relay_config import written_settings

SOON_S = 120.0
RULE = '[[rule]]\nname = "{}"\nwhen = {{ subject = "x" }}\nthen = [ {{ hold = "x" }} ]\n'


@pytest.fixture
def active(tmp_path: Path):
    written_settings(tmp_path, {})
    active = ActiveConfiguration(tmp_path / "relay.toml", {}, clock=SystemClock())
    yield active
    active.close()


async def test_a_reload_forgets_the_counts_of_rules_that_are_gone(active) -> None:
    metrics = Metrics()
    table = route_table(active.settings, active.accounts)
    reloader = Reloader(active, table, clock=SystemClock(), metrics=metrics)
    directory = active.settings.policy.directory
    (directory / "10-a.toml").write_text(RULE.format("a"))
    (directory / "20-b.toml").write_text(RULE.format("b"))
    await reloader.request()
    [outcome] = {one.outcome for one in active.now.rules.operator.rules}
    for name, what in (
        ("a", outcome),
        ("b", outcome),
        ("a", "defer"),
        ("a", "error"),
        ("a", "old"),
    ):
        metrics.policy_rules.labels(rule=name, outcome=what).inc()
    (directory / "20-b.toml").unlink()
    await reloader.request()
    [family] = metrics.policy_rules.collect()
    found = {
        (one.labels["rule"], one.labels["outcome"]): one.value
        for one in family.samples
        if one.name.endswith("_total")
    }
    assert found == {("a", outcome): 1, ("a", "defer"): 1, ("a", "error"): 1}


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

    monkeypatch.setattr("relay.operation.app.tenant_sets.load_rules", slow)
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


async def test_a_reload_shows_the_first_faults_of_files_with_any_name(active) -> None:
    table = route_table(active.settings, active.accounts)
    reloader = Reloader(active, table, clock=SystemClock(), metrics=Metrics())
    name = os.fsdecode(b"10\xff\n\x1b.toml")
    (active.settings.policy.directory / name).touch()
    [fault] = (await reloader.request()).faults
    assert r"/10\udcff\n\x1b.toml" in fault
    (active.settings.policy.directory / name).unlink()
    for number in range(11, 30):  # the faults of a file do not end there
        text = "[[rule]]\n" + "".join(f"a{each} = 1\n" for each in range(150))
        (active.settings.policy.directory / f"{number}.toml").write_text(text)
    result = await reloader.request()
    assert (result.reloaded, len(result.faults)) == (False, 101)
    assert result.faults[-1].startswith("and ")
