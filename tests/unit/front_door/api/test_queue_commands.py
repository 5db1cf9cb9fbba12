"""Queue commands: the fields of a body, their meaning and errors."""

import json
from typing import Any

import pytest

from relay.base.message.nexthop import Destination, NextHop
from relay.front_door.api.request_parameters import CommandIssuer, read_queue_command
from relay.front_door.http.errors import ApiError
from relay.store.spool.queue_commands import Operation, QueueCommand
from relay.store.spool.types import Selector
from tests.support.manual_clock import ManualClock
from tests.support.operator import all_to
from tests.support.tables import each_row

CLOCK = ManualClock(jumped_us=5_000_000)  # 2023-11-14T22:13:25Z on the wall


def way_to(text: str) -> Any:
    return all_to(NextHop.parse(text))


def target_of(address: str) -> str:
    return address.replace("@ali.test", "@a.test")


ISSUER = CommandIssuer("olga", way_to=way_to, target_of=target_of, clock=CLOCK)


def read(operation: str, **body: Any) -> QueueCommand:
    command, _ = read_queue_command(Operation(operation), json.dumps(body).encode(), ISSUER)
    return command


def test_the_fields_of_a_command_beside_its_conditions() -> None:
    conditions = {"domain": ".", "state": "held"}  # no domain has this name
    order = read("release", **conditions, dry_run=True, reason="x", as_before=True)
    selector = Selector(**conditions)
    assert order == QueueCommand(
        Operation.RELEASE, selector, "olga", why="x", dry_run=True, as_before=True
    )


@pytest.mark.parametrize(
    ("given", "held"), [("A.test.", "A.test"), ("*.a.test.", "*.a.test"), ("a_b.test", "a_b.test")]
)
def test_what_comes_for_a_domain_is_held_without_its_last_dot(given: str, held: str) -> None:
    assert read("hold", domain=given, new=True).selector == Selector(domain=held)
    assert read("release", domain=given).selector == Selector(domain=held)


def test_a_cancel_may_report_to_the_sender() -> None:
    order = read("cancel", all=True, bounce=True, text=" no such list ")
    assert (order.bounce, order.text) == (True, "no such list")
    assert not read("cancel", all=True).bounce


@pytest.mark.parametrize(
    ("until", "ahead_s"),
    [
        ("2h", 7200),
        ("1.5m", 90),
        ("2023-11-14T23:13:25Z", 3600),
        ("2023-11-15T00:13:25+01:00", 3600),
        ("2023-11-14 22:13:26.5Z", 1.5),
    ],
)
def test_a_hold_ends_in_steady_time(until: str, ahead_s: float) -> None:
    order = read("hold", all=True, until=until)
    assert order.until_us == CLOCK.queue_us() + ahead_s * 1_000_000


def test_a_reroute_says_where_to() -> None:
    order = read("reroute", all=True, to="mx:b.test")
    assert order.to is not None
    to = order.to("x@a.test", "me@s.test")
    assert to == Destination(NextHop.parse("mx:b.test"), chosen=True)
    assert order.to_text == "mx:b.test"


@each_row(
    "operation, body, named",
    [
        ("retry", {}, "Select entries"),
        ("cancel", {"all": True, "text": "x"}, "text: it is for the report"),
        ("cancel", {"all": True, "bounce": True, "text": "a\nb"}, "text: expected one line"),
        ("cancel", {"all": True, "bounce": True, "text": "x" * 501}, "text: expected one line"),
        ("hold", {"dry_run": True}, "Select entries"),
        ("retry", {"state": "relayed"}, "expected one of queued, deferred, held, captured"),
        ("retry", {"sender": "", "all": True}, "sender: found 0 letters"),
        ("retry", {"domain": "", "state": "held"}, "domain: found 0 letters"),
        ("retry", {"recipient": "a" * 1001}, "recipient: found 1001 letters"),
        ("retry", {"older_than_s": -1}, "older_than_s"),
        ("retry", {"ids": ["x"] * 10_001}, "ids: found 10001"),
        ("retry", {"all": True, "reason": "a\nb"}, "reason: expected one line"),
        ("hold", {"all": True, "until": "soon"}, "until: found 'soon', expected a duration"),
        ("hold", {"all": True, "until": "2001-01-01T00:00:00Z"}, "a time in the future"),
        ("hold", {"all": True, "until": "0s"}, "a time in the future"),
        ("reroute", {"all": True}, "to: '' is not a next hop"),
        ("hold", {"domain": "foo bar", "new": True}, "domain: found 'foo bar', expected a domain"),
        ("hold", {"domain": "a..test", "new": True}, "domain: found 'a..test', expected a domain"),
        ("hold", {"domain": "ali.test.", "new": True}, "'ali.test.', expected 'a.test', of which"),
        ("reroute", {"all": True, "to": "nowhere"}, "to: 'nowhere' is not a next hop"),
    ],
)
def test_an_invalid_value_is_named(operation: str, body: dict[str, Any], named: str) -> None:
    with pytest.raises(ApiError) as refused:
        read(operation, **body)
    assert (refused.value.status, refused.value.code) == (400, "BadRequest")
    assert named in refused.value.message


@each_row(
    "operation, body, named",
    [
        ("retry", {"all": "yes"}, "$.all"),
        ("retry", {"sendr": "a@b.test"}, "sendr"),
        ("retry", {"all": True, "until": "2h"}, "until"),
        ("cancel", {"all": True, "to": "mx:a.test"}, "to"),
        ("hold", {"all": True, "as_before": True}, "as_before"),
    ],
)
def test_an_unknown_field_is_rejected(operation: str, body: dict[str, Any], named: str) -> None:
    with pytest.raises(ApiError) as refused:
        read(operation, **body)
    assert (refused.value.status, refused.value.code) == (400, "UnableToDeserializePostBody")
    assert named in refused.value.message


@each_row("body", [b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_body_that_is_not_a_json_object_is_rejected(body: bytes) -> None:
    with pytest.raises(ApiError) as refused:
        read_queue_command(Operation.CANCEL, body, ISSUER)
    assert refused.value.code == "UnableToDeserializePostBody"
