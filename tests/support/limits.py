"""A counter of what accounts send, with the same limits for each."""

from relay.base.accounts.usage import UsageCounter
from relay.base.clock import Clock
from relay.base.settings.tree import Limits


def usage_of(clock: Clock, **limits: tuple[str, ...]) -> UsageCounter:
    """`limits` are those of `Limits`."""
    each = Limits(**limits), Limits()
    return UsageCounter(clock, limits_of=lambda _: each, is_own=lambda one: one == "example.test")
