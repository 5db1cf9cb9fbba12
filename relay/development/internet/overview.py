"""What a person sees of the simulated internet: the domains, their replies, what hosts have seen.

It is bounded by the limits of a scenario, of hosts that listen, and of what they remember.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from relay.base.clock import rfc3339
from relay.development.internet.behaviour import Action, ReceivedMail
from relay.development.internet.scenario_file import reply_names
from relay.development.internet.simulator import SimulatedInternet
from relay.development.internet.smtp_host import GIVEN_MAX, GivenReply, SmtpHost
from relay.development.internet.test_recipients import EXAMPLES

_ADDRESSES_MAX = 5  # of one message


def overview(internet: SimulatedInternet) -> dict[str, Any]:
    """Return `domains` of the scenario, each with its replies, and `graph` (its faults), with how
    often each was used; `hosts`, the `shipped` scenarios and the test `recipients`.

    Hosts are those of the scenario in its order, then others that listen.
    """
    scenario, used = internet.state.scenario, iter(internet.state.used())
    return {
        "domains": [
            (domain, list(zip(domain.reply, used, strict=False))) for domain in scenario.domain
        ],
        "graph": list(zip(scenario.graph, used, strict=True)),
        "hosts": _hosts(internet),
        "shipped": reply_names(),
        "recipients": EXAMPLES,
    }


def _hosts(internet: SimulatedInternet) -> list[dict[str, Any]]:
    received: dict[str, list[ReceivedMail]] = {}
    for mail in reversed(internet.received):
        received.setdefault(mail.host, []).append(mail)
    domains: dict[str, list[str]] = {}
    for domain in internet.state.scenario.domain:
        for host in domain.hosts:
            domains.setdefault(host.host, []).append(domain.name)
    names = dict.fromkeys([*domains, *internet.hosts, *received])
    return [
        _host(
            name, internet.hosts.get(name), domains.get(name, ()), received=received.get(name, ())
        )
        for name in names
    ]


def _host(
    name: str, host: SmtpHost | None, domains: Sequence[str], *, received: Sequence[ReceivedMail]
) -> dict[str, Any]:
    return {
        "host": name,
        "domains": list(domains),
        "listens": host is not None,
        "sessions": host.sessions if host else 0,
        "open": host.open if host else 0,
        "received": len(received),
        "messages": [_message(mail) for mail in received[:GIVEN_MAX]],
        "given": [_given(reply) for reply in reversed(host.given)] if host else [],
    }


def _message(mail: ReceivedMail) -> dict[str, Any]:
    return {
        "id": mail.queue_id,
        "at": rfc3339(mail.received_us),
        "sender": mail.sender,
        "recipients": mail.addresses[:_ADDRESSES_MAX],
        "more": max(0, len(mail.addresses) - _ADDRESSES_MAX),
        "tls": mail.tls,
        "size": len(mail.content),
    }


def _given(reply: GivenReply) -> Mapping[str, Any]:
    return {
        "at": rfc3339(reply.at_us),
        "verb": reply.stage,
        "sender": reply.sender,
        "recipient": reply.recipient,
        "did": what_was_done(reply.action),
    }


def what_was_done(action: Action) -> str:
    """Return an action in words: the reply, or what was done instead, and after which delay."""
    if action.drop:
        done = "closed the connection"
    elif action.stall:
        done = "no reply"
    elif action.bad_certificate:
        done = "a certificate that is not valid"
    else:
        done = action.reply or "the usual reply"
    return f"{done}, after {action.delay_s:g} s" if action.delay_s else done
