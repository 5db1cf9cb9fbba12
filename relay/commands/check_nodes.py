"""What `relay check` says where several nodes share a spool: each has limits of its own."""

from collections.abc import Iterator, Sequence
from contextlib import suppress

from relay.app.tenant_sets import load_set
from relay.policy.actions import RateLimitAction
from relay.policy.rule_files import PolicyError
from relay.policy.rules import RuleMode
from relay.settings.tree import Settings
from relay.settings.validation import name_of

_NAMED_MAX = 10


def limits_of_all(settings: Settings, nodes: Sequence[str]) -> Iterator[str]:
    """Yield what all living nodes together may do: one line for each limit."""
    number = len(nodes)
    more = f" and {number - _NAMED_MAX} more" if number > _NAMED_MAX else ""
    named = f"{', '.join(nodes[:_NAMED_MAX])}{more}"
    yield f"{number} nodes live ({named}), each with limits of its own; together at most:"
    for name, limit in _limits(settings):
        if isinstance(limit, int):
            yield f"{name}: {number} x {limit} = {number * limit}"
        elif limit:
            count, _, seconds = limit.partition("/")
            yield f"{name}: {number} x {count} = {number * int(count)} in {float(seconds):g} s"


def _limits(settings: Settings) -> Iterator[tuple[str, int | str | None]]:
    """Yield each limit with its key: connections, or a rate as COUNT/SECONDS; "" is none."""
    delivery = settings.delivery
    yield "delivery.max_connections", delivery.max_connections
    yield "delivery.max_connections_per_next_hop", delivery.max_connections_per_next_hop
    yield "delivery.max_rate_per_next_hop", delivery.max_rate_per_next_hop
    yield "reports.per_sender", settings.reports.per_sender
    for route in settings.route:
        yield f'route "{name_of(route)}" max_connections', route.max_connections
        yield f'route "{name_of(route)}" max_rate', route.max_rate
    with suppress(PolicyError):  # it is reported elsewhere
        sets = [load_set(settings, one, runs_tests=False) for one in (None, *settings.tenant)]
        for rule in (rule for rules in sets for rule in rules.rules):
            for one in rule.actions if rule.mode is RuleMode.ENFORCE else ():
                if isinstance(one, RateLimitAction):
                    yield f'rule "{rule.name}" rate_limit', f"{one.allowed}/{one.period_s}"
