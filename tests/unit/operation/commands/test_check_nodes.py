"""The limits that nodes of one spool have together."""

from pathlib import Path

from relay.base.settings.tree import (
    DeliverySettings,
    PolicySettings,
    Route,
    Settings,
)
from relay.operation.commands.check_network import limits_of_all

RULE = """[[rule]]
name = "{name}"
mode = "{mode}"
when = {{ recipients_over = 1 }}
then = [{{ rate_limit = {{ rate = "5/1m", per = "sender" }} }}]
"""


def test_each_limit_is_multiplied_by_the_number_of_nodes(tmp_path: Path) -> None:
    rules = [RULE.format(name=mode, mode=mode) for mode in ("enforce", "audit", "off")]
    (tmp_path / "10-rates.toml").write_text("\n".join(rules))
    settings = Settings(
        "relay.test",
        tmp_path,
        policy=PolicySettings(tmp_path),
        delivery=DeliverySettings(max_connections=100, max_rate_per_next_hop="10/60.0"),
        route=(Route("a.test", "mx", name="a", max_connections=3, max_rate="7/1.0"),),
    )
    assert [*limits_of_all(settings, ["one", "three", "two"])] == [
        "3 nodes live (one, three, two), each with limits of its own; together at most:",
        "delivery.max_connections: 3 x 100 = 300",
        "delivery.max_connections_per_next_hop: 3 x 20 = 60",
        "delivery.max_rate_per_next_hop: 3 x 10 = 30 in 60 s",
        "reports.per_sender: 3 x 100 = 300 in 3600 s",
        'route "a" max_connections: 3 x 3 = 9',
        'route "a" max_rate: 3 x 7 = 21 in 1 s',
        'rule "enforce" rate_limit: 3 x 5 = 15 in 60 s',
    ]
