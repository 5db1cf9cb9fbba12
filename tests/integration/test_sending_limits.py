"""What an account may send to other domains, by SMTP and by Graph as one account, over a restart."""

import smtplib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from tests.support.graph_client import message, people
from tests.support.relay_config import OPERATOR, account
from tests.support.relay_process import RelayProcess

LIMITS = {"messages": "4/1h", "recipients": ["6/1h", "50/1d"]}
FREE = account("free", limits={"messages": "", "recipients": "9/1d"})
STRANGER = "127.0.0.2"


@pytest.fixture
def relay(serve) -> RelayProcess:
    routes = [{"domain": "*", "next_hop": "capture"}]
    return serve(config={"limits": LIMITS, "route": routes}, accounts=[FREE])


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
    assert by_smtp(relay, [*outside(3), "bob@EXAMPLE.test"]) == "250"
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
    assert (again.status, again.headers["x-relay-message-id"]) == (202, first.headers["x-relay-message-id"])  # fmt: skip
    assert by_graph(relay, ["bob@example.test"]).status == 202
    reply = by_smtp(relay, ["y@other.test"])
    assert reply.startswith("450 4.7.1 The limit of this account is 6 recipients to other domains in 1h; try again after 20")  # fmt: skip
    for login in ("bob", "free"):
        assert by_smtp(relay, outside(1), login) == "250"
    for count in range(3):
        assert by_smtp(relay, outside(1, f"{count}"), "bob") == "250"
    assert "limit of this account is 4 messages" in by_smtp(relay, outside(1), "bob")
    rows = relay.graph("GET", "/relay/v1/refused", token=OPERATOR).json()["refused"]
    assert [(one["account"], one["reason"], one["rule"]) for one in rows] == [
        ("bob@example.test", "limit", ""), ("alice@example.test", "limit", ""),
    ]  # fmt: skip
    assert relay.faults() == []


def test_more_recipients_than_a_limit_never_pass(relay: RelayProcess) -> None:
    text = (
        "The limit of this account is 6 recipients to other domains in 1h, and this message has 7"
    )
    assert by_smtp(relay, outside(7)) == f"550 5.7.1 {text}"
    answer = by_graph(relay, outside(7))
    assert (answer.status, answer.json()["error"]["code"]) == (400, "ErrorInvalidRecipients")
    assert by_smtp(relay, outside(7), "free") == "250"
    assert "9 recipients to other domains in 1d; try" in by_smtp(relay, outside(3), "free")
    assert relay.submit(
        "alice@example.test", [f"{one}@other.test" for one in range(7)]
    )  # of a trusted network, with no login
