"""What a scenario has in it, for the broken relays that show only there."""

from relay.base.message.envelope import Notify
from tests.simulation import scenario

OPERATORS = 10
SLOWEST = "3/300"


def crowded(plan: scenario.Scenario) -> bool:
    """Whether a site takes a message for many in several transactions."""
    return any(host.name == "few at once" for hosts in plan.domains.values() for host in hosts)


def aliased(plan: scenario.Scenario) -> bool:
    """Whether mail is for two aliases at once."""
    names = {f"{name}@{scenario.HOME}" for name in ("team", "everyone", "lost")}
    return any(len(names & {to for to, _ in one.recipients}) > 1 for one in plan.letters)


def forwards_for_others(plan: scenario.Scenario) -> bool:
    """Whether aliases send mail outside that comes from outside."""
    names = {f"{name}@{scenario.HOME}" for name in ("team", "everyone", "moved")}
    return any(
        one.reverse_path
        and not one.reverse_path.endswith(f"@{scenario.HOME}")
        and names & {to for to, _ in one.recipients}
        for one in plan.letters
    )


def operated(plan: scenario.Scenario) -> bool:
    return sum(trouble.kind == "operator" for trouble in plan.troubles) >= OPERATORS


def cancelled_in_flight(plan: scenario.Scenario) -> bool:
    return any(trouble.kind == "cancel in flight" for trouble in plan.troubles)


def paused(plan: scenario.Scenario) -> bool:
    return any(trouble.kind == "pause" for trouble in plan.troubles)


def held_for_a_time(plan: scenario.Scenario) -> bool:
    """Whether few other operators release what is held for a time."""
    return not operated(plan) and any(
        trouble.kind == "timed hold" and trouble.amount < plan.expire_after_s / 2
        for trouble in plan.troubles
    )


def held_and_never_anew(plan: scenario.Scenario) -> bool:
    return held_for_a_time(plan) and never_anew(plan)


def guarded(plan: scenario.Scenario) -> bool:
    """Whether a host has mail of a next hop with a login, and of one without."""
    domains = {address.partition("@")[2] for one in plan.letters for address, _ in one.recipients}
    return domains >= {scenario.GATED, scenario.BESIDE}


def gated_twice(plan: scenario.Scenario) -> bool:
    """Whether there is mail for the gate's route, and a life in which another one is above it."""
    domains = {address.partition("@")[2] for one in plan.letters for address, _ in one.recipients}
    return scenario.GATED in domains and bool(plan.lives)


def held(plan: scenario.Scenario) -> bool:
    """Whether routes hold some mail."""
    domains = {address.partition("@")[2] for one in plan.letters for address, _ in one.recipients}
    return not domains.isdisjoint(plan.holds)


def held_by_rules(plan: scenario.Scenario) -> bool:
    """Whether rules hold some mail."""
    return any(one.words in scenario.HELD_S for one in plan.letters)


def released_between_lives(plan: scenario.Scenario) -> bool:
    """Whether what a route holds is released, and its next hop's route is renamed."""
    decides = any(trouble.kind == "held" for trouble in plan.troubles)
    return scenario.GATED in plan.holds and gated_twice(plan) and decides


def in_clear(plan: scenario.Scenario) -> bool:
    """Whether healthy hosts have mail that a policy keeps from them without TLS, and other mail."""
    domains = {address.partition("@")[2] for one in plan.letters for address, _ in one.recipients}
    if not domains >= {scenario.STRICT, scenario.STRICT_MX}:
        return False
    is_healthy = all(host.name == "healthy" for host in plan.domains[scenario.STRICT_MX])
    is_enforced = plan.published[0].mode == "enforce" and not plan.tlsa
    return is_healthy and is_enforced


def published(plan: scenario.Scenario) -> bool:
    """Whether there is mail to a domain that publishes policies."""
    return bool(plan.published)


def forged(plan: scenario.Scenario) -> bool:
    """Whether the TLSA records of a host that gets mail were not validated."""
    return plan.tlsa == scenario.FORGED


def boxed(plan: scenario.Scenario) -> bool:
    """Whether a site accepts a message by LMTP for some, and defers it for others."""
    return any(host.lmtp and host.busy for hosts in plan.domains.values() for host in hosts)


def crowds(plan: scenario.Scenario) -> bool:
    """Whether much mail goes to a site that is slow for some of it, and no rate delays it."""
    return scenario.CROWD in plan.domains and not plan.rate


def without_rates(plan: scenario.Scenario) -> bool:
    return not plan.rate and not plan.route_rate


def filled(plan: scenario.Scenario) -> bool:
    return any(trouble.kind == "full" for trouble in plan.troubles)


def owing(plan: scenario.Scenario) -> bool:
    """Whether success reports may be owed until the end of an attempt."""
    asked = (notify for letter in plan.letters for _, notify in letter.recipients)
    return crowded(plan) and any(Notify.SUCCESS in notify for notify in asked)


def slowed(plan: scenario.Scenario) -> bool:
    return plan.rate == SLOWEST


def slower_than_expiry(plan: scenario.Scenario) -> bool:
    """Whether more mail may wait for its turn than goes out before it expires."""
    is_slow = SLOWEST in (plan.rate, plan.route_rate)
    return is_slow and plan.expire_after_s < 3600 and len(plan.letters) > 15


def slow_and_short(plan: scenario.Scenario) -> bool:
    """Whether a process may die while a commit goes on."""
    return bool(plan.commit_s and plan.lives)


def unsyncable(plan: scenario.Scenario) -> bool:
    """Whether a process may die soon after a sync that failed."""
    fails = any(trouble.kind == "sync" for trouble in plan.troubles)
    return fails and any(life.steps_after_sync for life in plan.lives)


def never_anew(plan: scenario.Scenario) -> bool:
    return plan.walks_anew_s == scenario.NEVER_S


def in_versions(plan: scenario.Scenario) -> bool:
    return any(letter.words == "version" for letter in plan.letters)


def short(plan: scenario.Scenario) -> bool:
    return bool(plan.lives)


def suppresses(plan: scenario.Scenario) -> bool:
    return plan.suppresses
