"""Reloader: requests during a reload."""

from pathlib import Path

import pytest

from relay.base.clock import SystemClock
from relay.base.observe.metrics import Metrics
from relay.operation.app.configuration import ActiveConfiguration, route_table
from relay.operation.app.foundation import Reloader
from tests.support.relay_config import written_settings

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
    [outcome] = {one.outcome for one in active.rules().operator.rules}
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
    found = {(one.labels["rule"], one.labels["outcome"]): one.value for one in family.samples
             if one.name.endswith("_total")}  # fmt: skip
    assert found == {("a", outcome): 1, ("a", "defer"): 1, ("a", "error"): 1}
