"""What an account may send to other domains, by SMTP and by Graph as one account, over a restart."""

import smtplib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from tests.support.graph_client import message, people
from tests.support.relay_config import OPERATOR, account
from tests.support.relay_process import RelayProcess, until
from tests.support.webhooks import WebhookReceiver, hook

LIMITS = {"messages": "4/1h", "recipients": ["6/1h", "50/1d"]}
FREE = account("free", limits={"messages": "", "recipients": "9/1d"})
STRANGER = "127.0.0.2"
RULE = """
[[rule]]
name = "later"
when = { recipient = "later@*" }
then = [ { defer = "4.7.1 later" } ]
"""


@pytest.fixture
def relay(serve) -> RelayProcess:
    routes = [{"domain": "*", "next_hop": "capture"}]
    config = {"limits": LIMITS, "route": routes}
    return serve(config=config, accounts=[FREE], policies={"10.toml": RULE})


def by_smtp(relay: RelayProcess, to: Sequence[str], login: str = "alice") -> str:
    """The reply to the final dot of a client that nobody trusts."""
    with relay.smtp(source=STRANGER) as client:
        client.login(f"{login}@example.test", login)
        try:
            ascii_to = [one.replace("bücher", "xn--bcher-kva") for one in to]
            client.sendmail(f"{login}+x@example.test", ascii_to, "Subject: x\r\n\r\nx\r\n")
        except smtplib.SMTPDataError as error:
            return f"{error.smtp_code} {error.smtp_error.decode()}"
        return "250"


def by_graph(relay: RelayProcess, to: Sequence[str], *, key: str = "", **more):
    headers = {"Idempotency-Key": key} if key else {}
    body = {"message": message(to=to, **more)}
    return relay.graph("POST", "/me/sendMail", body, headers=headers)


def outside(count: int, name: str = "x") -> list[str]:
    return [f"{name}{number}@bücher.test" for number in range(count)]


def test_smtp_and_graph_count_as_one_over_a_restart(relay: RelayProcess) -> None:
    assert by_smtp(relay, [*outside(3), "bob@EXAMPLE.test", "Postmaster"]) == "250"
    time = (datetime.now(UTC) + timedelta(hours=9)).isoformat()
    later = {"singleValueExtendedProperties": [{"id": "SystemTime 0x3FEF", "value": time}]}
    draft = relay.graph("POST", "/me/messages", message(to=outside(1), **later)).json()["id"]
    sent = [relay.graph("POST", f"/me/messages/{draft}/send") for _ in range(2)]
    wider = {"ccRecipients": people(*outside(6, "y"))}
    assert relay.graph("PATCH", f"/me/messages/{draft}", wider).status == 429  # what waits is sent
    first, again = (by_graph(relay, [*outside(2), "bob@example.test"], key="k") for _ in range(2))
    assert [one.status for one in (*sent, first, again)] == [202] * 4
    relay.stop()
    relay.start()
    beyond = by_graph(relay, outside(1))
    assert (beyond.status, beyond.json()["error"]["code"]) == (429, "ApplicationThrottled")
    assert 3500 < int(beyond.headers["retry-after"]) <= 3720
    again = by_graph(relay, [*outside(2), "bob@example.test"], key="k")
    assert (again.status, again.headers["x-relay-message-id"]) == (
        202,
        first.headers["x-relay-message-id"],
    )
    assert by_graph(relay, ["bob@example.test"]).status == 202
    reply = by_smtp(relay, ["y@other.test"])
    assert reply.startswith(
        "450 4.7.1 The limit of this account is 6 recipients to other domains in 1h; try again after 20"
    )
    for login in ("bob", "free"):
        assert by_smtp(relay, outside(1), login) == "250"
    for count in range(3):
        assert by_smtp(relay, outside(1, f"{count}"), "bob") == "250"
    assert "limit of this account is 4 messages" in by_smtp(relay, outside(1), "bob")
    rows = relay.graph("GET", "/relay/v1/refused", token=OPERATOR).json()["refused"]
    assert [(one["account"], one["reason"], one["rule"]) for one in rows] == [
        ("bob@example.test", "limit", ""),
        ("alice@example.test", "limit", ""),
    ]
    assert relay.faults() == []


def test_a_draft_counts_once_however_often_it_is_sent(relay: RelayProcess) -> None:
    time = (datetime.now(UTC) + timedelta(hours=9)).isoformat()
    later, now = (
        {"singleValueExtendedProperties": [{"id": "SystemTime 0x3FEF", "value": value}]}
        for value in (time, None)
    )
    sent = by_graph(relay, outside(5), **later)
    path = f"/me/messages/{sent.headers['x-relay-message-id']}"
    wider = {"toRecipients": people(*outside(6))}
    answers = [relay.graph("PATCH", path, wider), relay.graph("POST", f"{path}/send")]
    assert by_graph(relay, outside(1)).status == 429
    answers += [relay.graph("POST", f"{path}/send"), relay.graph("PATCH", path, now)]
    answers += [relay.graph("POST", f"{path}/send")]
    assert [one.status for one in answers] == [200, 202, 202, 200, 202]
    [used] = relay.graph("GET", "/relay/v1/usage").json()["accounts"]
    assert (used["messages"], used["recipients"]) == (2, 6)  # a change that adds counts as one


def test_more_recipients_than_a_limit_never_pass(relay: RelayProcess) -> None:
    text = (
        "The limit of this account is 6 recipients to other domains in 1h, and this message has 7"
    )
    assert by_smtp(relay, outside(7)) == f"550 5.7.1 {text}"
    answer = by_graph(relay, outside(7))
    assert (answer.status, answer.json()["error"]["code"]) == (400, "ErrorInvalidRecipients")
    assert by_smtp(relay, outside(7), "free") == "250"
    assert "9 recipients to other domains in 1d; try" in by_smtp(relay, outside(3), "free")
    assert relay.submit("alice@example.test", [f"{one}@a.test" for one in range(7)])  # no login


def test_each_spelling_of_an_address_is_a_recipient(relay: RelayProcess) -> None:
    spellings = ["bob@a.test", "Bob@a.test", "bOb@a.test", "boB@a.test"]
    assert by_graph(relay, [*spellings, "bob@A.test"]).status == 202  # its envelope has one
    assert [by_smtp(relay, spellings)[:3] for _ in range(2)] == ["250", "450"]  # of six


def test_what_is_not_accepted_counts_nothing_and_a_reload_changes_limits(relay) -> None:
    replies = {by_smtp(relay, [*outside(5), "later@a.test"]) for _ in range(3)}
    assert replies == {"451 4.7.1 later"}
    assert by_smtp(relay, outside(6)) == "250"
    assert by_smtp(relay, outside(1)).startswith("450")
    relay.write_config(relay.config | {"limits": {"recipients": "7/1h"}})
    assert relay.cli("reload").returncode == 0
    assert [by_smtp(relay, outside(1))[:3] for _ in range(2)] == ["250", "450"]


def test_what_is_sent_of_a_draft_that_changes_meanwhile_is_what_counts(relay: RelayProcess) -> None:
    wider, sent = {"toRecipients": people(*outside(40))}, 0
    for _ in range(8):
        draft = relay.graph("POST", "/me/messages", message(to=outside(1)), token="free").json()
        path = f"/me/messages/{draft['id']}"
        with ThreadPoolExecutor() as threads:
            change = threads.submit(relay.graph, "PATCH", path, wider, token="free")
            sent += relay.graph("POST", f"{path}/send", token="free").status == 202
            assert change.result().status in (200, 409)
    queued = until(
        "sent", lambda: len(found := relay.cli_json("queue", "list")) == sent and [found]
    )
    assert {len(one["recipients"]) for one in queued[0]} <= {1}


def test_an_operator_sees_and_hears_who_nears_a_limit(serve) -> None:
    """Once a day for each step, also over a restart."""
    with WebhookReceiver() as receiver:
        hooks = [hook(receiver, events=["limit"]), hook(receiver, "/bob", accounts=["bob@*"])]
        limits = {"recipients": "10/1h", "alert": "bob@example.test"}
        routes = [{"domain": "*", "next_hop": "capture"}]
        relay = serve(config={"limits": limits, "route": routes, "webhook": hooks})
        for count, reply in ((7, "250"), (1, "250"), (3, "450"), (2, "250"), (1, "450")):
            assert by_smtp(relay, outside(count))[:3] == reply
        until("both steps", lambda: len(relay.maildir("bob")) == 2)
        relay.stop()
        relay.start()
        assert by_smtp(relay, outside(1))[:3] == "450"
        assert by_smtp(relay, outside(1), "bob") == "250"
        until("a third message", lambda: relay.metric("relay_reports_total", kind="notify") == 1)
        found = receiver.until(lambda found: sum(one["name"] == "limit" for one in found) == 3)
    near, over, again = [one for one in found if one["name"] == "limit"]
    limit = {"account": "alice@example.test", "limit": "recipients 10/1h"}
    assert (near["step"], near["detail"]) == (0, {**limit, "used": 8, "until": None})
    assert near["id"] != over["id"] == again["id"]
    until_text = again["detail"]["until"]
    assert again["detail"] == {**limit, "used": 10, "until": until_text}

    used = {"what": "recipients", "rate": "10/1h", "used": 10, "until": until_text}
    alice = {"account": "alice@example.test", "messages": 3, "recipients": 10, "limits": [used]}
    own = relay.graph("GET", "/relay/v1/usage")
    assert (
        own.json()
        == relay.cli_json("account", "usage", "Alice@example.test")
        == {"accounts": [alice]}
    )
    both = relay.graph("GET", "/relay/v1/usage", token=OPERATOR).json()["accounts"]
    assert [one["account"] for one in both] == ["alice@example.test", "bob@example.test"]
    assert relay.graph("GET", "/relay/v1/usage?account=bob@example.test").status == 403
    assert relay.cli("account", "usage", "nobody@example.test").returncode == 65
    shown = f"alice@example.test  3 messages, 10 recipients\n  recipients 10/1h: 10 used, refused until {until_text}\n"
    assert relay.cli("account", "usage").stdout.startswith(shown)
    assert relay.metric("relay_account_messages", account="alice@example.test") == 3
    for headers in ({"X-Forwarded-For": "192.0.2.1"}, {"Host": "relay.example.test"}):
        assert (
            "alice" not in httpx.get(f"{relay.url}/metrics", headers=headers, trust_env=False).text
        )

    first, second = sorted(relay.maildir("bob"), key=lambda one: "refused" in one.get_payload())
    assert "has sent 8 of 10 recipients in 1h to other domains" in first.get_payload()
    assert f"refused until: {until_text}" in second.get_payload()
    assert (first["Auto-Submitted"], first["Return-Path"]) == ("auto-generated", "<>")


def test_an_operator_gives_the_owner_of_a_stolen_account_its_limit_back(serve) -> None:
    routes = [{"domain": "waits.test", "next_hop": "hold"}, {"domain": "*", "next_hop": "capture"}]
    relay = serve(config={"limits": {"recipients": "6/1h"}, "route": routes})
    victims = [f"{number}@waits.test" for number in range(5)]
    assert [by_smtp(relay, victims), by_smtp(relay, outside(1))] == ["250", "250"]
    assert by_smtp(relay, outside(1)).startswith("450")
    spam = ("--login", "alice@example.test", "--state", "held")
    assert relay.cli("queue", "cancel", *spam).returncode == 0
    assert (
        "  recipients 6/1h: 1 used\n" in relay.cli("account", "usage", "alice@example.test").stdout
    )
    assert by_graph(relay, outside(5)).status == 202
    assert by_smtp(relay, outside(1)).startswith("450")
    path = "/relay/v1/usage?account=alice@example.test"
    assert relay.graph("DELETE", path).status == 403
    assert relay.cli("account", "usage", "--reset").returncode == 64
    assert relay.cli("account", "usage", "nobody@example.test", "--reset").returncode == 65
    shown = relay.cli("account", "usage", "Alice@example.test", "--reset").stdout
    assert shown == "alice@example.test  0 messages, 0 recipients\n  recipients 6/1h: 0 used\n"
    assert by_smtp(relay, outside(6)) == "250"
    answer = relay.graph("DELETE", path, token=OPERATOR).json()["accounts"]
    assert answer == relay.graph("GET", "/relay/v1/usage").json()["accounts"]
    relay.stop()
    relay.start()
    assert by_smtp(relay, outside(6)) == "250"
