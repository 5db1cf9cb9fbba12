"""What each test recipient leads to, for mail that several clients send to one relay.

    sent = SentToAll(relay, clients)       # sends, waits, advances the clock once
    sent.check("swaks", EXPECTED[0])

All messages are sent before anything is checked, so that the clock is advanced once. A client is a
function that sends one message to each recipient; its subject is subject_for().
"""

import mailbox
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from msgspec import convert

from relay.base.message.status import split_reply
from relay.development.internet.test_recipients import EXAMPLES, Manner, find_test_recipient
from relay.store.journeys.document import Journey
from tests.support.dev_process import DevProcess
from tests.support.relay_config import OPERATOR
from tests.support.relay_process import until
from tests.support.reports import reports_of

ADVANCED_S = 3600  # enough for all that is accepted later; two days of retries take much longer
_WAIT_S = 60.0

Client = Callable[[DevProcess, str, Sequence[str]], None]  # relay, sender, recipients


@dataclass(frozen=True)
class Expected:
    """A test recipient, and what its mail comes to when the clock was advanced.

    `first` is the outcome of the first attempt, `delay_s` the least duration of that attempt in the
    relay's time, and `reply` a pattern of its reply. `reported` is one of the status in a report to
    the sender, "" without one. `attempts` is the least number at the end.
    """

    address: str
    first: str
    last: str
    reply: str = "2"
    reported: str = ""
    attempts: int = 1
    delay_s: float = 0.0


def _expected(address: str) -> Expected:
    """What the mail to a test recipient comes to; in the domain of its kind, no other mail waits for it."""
    wanted = find_test_recipient(address)
    assert wanted is not None, f"{address} is no test recipient"
    kind, reply = wanted.manner, re.escape(wanted.reply)
    address = address.replace("@example.org", f"@{kind.name.lower().replace('_', '-')}.example")
    status = re.escape(split_reply(wanted.reply).status) or r"5\.\d\.\d"
    match kind:
        case Manner.REPLY if wanted.reply[0] == "5":
            return Expected(address, "failed", "failed", reply, status)
        case Manner.REPLY if wanted.times:
            return Expected(address, "deferred", "relayed", reply, attempts=wanted.times + 1)
        case Manner.REPLY | Manner.DROP:
            return Expected(address, "deferred", "deferred", reply, attempts=5)
        case Manner.GREYLIST:
            return Expected(address, "deferred", "relayed", reply, attempts=2)
    reported = status if kind is Manner.LATER else ""
    return Expected(address, "relayed", "relayed", reported=reported, delay_s=wanted.delay_s)


# apart from a silent host, which costs a time-out in real time at each attempt, and one that is captured
EXPECTED = (
    *(_expected(address) for address, does in EXAMPLES if not does.startswith("never")),
    Expected("ann@customer.example", "captured", "captured"),
)
RECIPIENTS = [one.address for one in EXPECTED]


def subject_for(recipient: str) -> str:
    """The subject of the message to a recipient."""
    return f"For {recipient}"


class SentToAll:
    """Mail of some clients to all test recipients, before and after the advance of the clock."""

    def __init__(self, relay: DevProcess, clients: Mapping[str, Client]) -> None:
        self._relay = relay
        for name, send in clients.items():
            send(relay, f"{name}@example.test", RECIPIENTS)
        final = {one.address for one in EXPECTED if one.last in ("failed", "relayed")}
        tried = {one.address for one in EXPECTED if not one.delay_s}
        for name in clients:
            self._until(name, lambda one: bool(_attempts(one)), tried)
        answer = relay.graph(
            "POST", "/relay/v1/dev/clock", {"advance_s": ADVANCED_S}, token=OPERATOR
        )
        assert answer.status == 200, answer.body
        self.after = {name: self._until(name, _is_final, final) for name in clients}
        self.reports = {name: reports_of(relay, name) for name in clients}
        self.senders = {address: _senders(relay.mailbox_of(address)) for address in RECIPIENTS}

    def _until(
        self, client: str, ready: Callable[[Mapping[str, Any]], bool], addresses: Collection[str]
    ) -> dict[str, dict[str, Any]]:
        """Return the journeys by recipient, when those of `addresses` are ready."""
        found: dict[str, dict[str, Any]] = {}

        def all_are() -> bool:
            path = f"/relay/v1/messages?sender={client}@example.test&limit=1000"
            for journey in self._relay.graph("GET", path, token=OPERATOR).json()["messages"]:
                found[journey["recipients"][0]["address"]] = journey
            return {name for name, one in found.items() if ready(one)} >= set(addresses)

        try:
            until("the mail has come so far", all_are, timeout_s=_WAIT_S)
        except AssertionError as error:
            late = {
                name: found[name]
                for name in addresses
                if not (name in found and ready(found[name]))
            }
            raise AssertionError(f"{client}: {late}") from error
        return found

    def check(self, client: str, expected: Expected) -> None:
        """Compare one message of a client with what its recipient names."""
        address = expected.address
        after = self.after[client][address]
        assert after["subject"] == subject_for(address)
        assert after["state"] == expected.last, after
        attempts = _attempts(after)
        assert len(attempts) >= expected.attempts, attempts
        assert attempts[0]["outcome"] == expected.first, attempts
        assert _seconds_to(attempts[0], after) >= expected.delay_s, after
        assert re.match(expected.reply, attempts[0]["reply"]), attempts
        copies = sum(f"{client}@example.test" in one for one in self.senders[address])
        assert copies == (expected.last in ("relayed", "captured"))
        self._check_report(client, expected)

    def _check_report(self, client: str, expected: Expected) -> None:
        reports = [one for one in self.reports[client] if expected.address in one.recipients]
        assert len(reports) == bool(expected.reported), reports
        for report in reports:
            assert report.returned["Subject"] == subject_for(expected.address)
            fields = report.recipients[expected.address]
            assert fields["action"] == "failed"
            assert re.fullmatch(expected.reported, fields["status"]), fields


def _is_final(journey: Mapping[str, Any]) -> bool:
    return convert(journey, Journey).is_final


def _attempts(journey: Mapping[str, Any]) -> list[dict[str, Any]]:
    [recipient] = journey["recipients"]
    return list(recipient["attempts"])


def _seconds_to(attempt: Mapping[str, Any], journey: Mapping[str, Any]) -> float:
    """The time from the acceptance of a message to the end of an attempt."""
    [accepted] = [one["at"] for one in journey["steps"] if one["name"] == "policy and routing"]
    return (
        datetime.fromisoformat(attempt["at"]) - datetime.fromisoformat(accepted)
    ).total_seconds()


def _senders(maildir: Path) -> list[str]:
    """The From fields of the messages in a mailbox."""
    if not maildir.is_dir():
        return []
    return [str(one["From"]) for one in mailbox.Maildir(maildir, create=False)]
