"""Reports of `relay dev` as rows of the list, waits for them, and what a wait in vain answers."""

import smtplib
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from tests.support.dev_process import DevProcess

APP = "noreply@myapp.io"
LIST = "/relay/v1/messages"
GOOD, BAD, LATE = "ann@customer.example", "bob+550@customer.example", "joe+451@customer.example"


@pytest.fixture
def relay(plain_dev: DevProcess) -> DevProcess:
    assert plain_dev.request("DELETE", LIST).status == 200
    return plain_dev


def get(relay: DevProcess, path: str, **query: object) -> Any:
    answer = relay.request("GET", path + (f"?{urlencode(query)}" if query else ""))
    assert answer.status == 200, answer.body
    return answer.json()


def send(relay: DevProcess, subject: str, *to: str) -> str:
    return relay.submit(APP, to, f"From: {APP}\r\nSubject: {subject}\r\n\r\nx".encode())


def reported(relay: DevProcess, key: str, timeout: float = 10) -> Any:
    return get(relay, f"{LIST}/{key}/wait", state="reported", timeout=timeout)


def subjects(relay: DevProcess, **query: object) -> list[str]:
    return [one["subject"] for one in get(relay, LIST, **query)["messages"]]


def test_a_report_is_a_row_and_is_waited_for(relay: DevProcess) -> None:
    cursor = get(relay, LIST, limit=1)["cursor"]
    key = send(relay, "Invoice", BAD)
    report = "Undeliverable: Invoice"
    wanted = {"kind": "report", "to": APP, "subject": "undeliverable*", "wait": 10}
    assert subjects(relay, **wanted, after=cursor) == [report]
    assert subjects(relay) == [report, "Invoice"]
    assert subjects(relay, kind="mail") == ["Invoice"]
    assert subjects(relay, kind="report") == [report]
    assert subjects(relay, kind="report", q="invoice") == [report]
    [found] = get(relay, LIST, kind="report")["messages"]
    assert (found["sender"], found["steps"][0]["detail"]["about"]) == ("", key)
    assert subjects(relay, kind="mail", q=f"id:{found['id']}") == []
    assert subjects(relay, kind="report", q=f"id:{found['id']}") == [report]
    assert b"550 5.1.1" in relay.request("GET", f"{LIST}/{found['id']}/source").body
    # neither what came last, nor of Mailpit's lists and of the log
    assert get(relay, f"{LIST}/last")["id"] == key
    assert get(relay, "/api/v1/messages")["total"] == 1
    assert [one["id"] for one in get(relay, "/relay/v1/log")["messages"]] == [key]


@pytest.mark.parametrize("others", [(), (GOOD,), ("eve+550@customer.example", LATE)])
def test_reported_means_that_each_failed_recipient_has_its_report(
    relay: DevProcess, others: tuple[str, ...]
) -> None:
    found = reported(relay, send(relay, "Invoice", BAD, *others))
    assert found["reached"] is True
    told = {one["address"]: (one["reported"] or {}).get("kind") for one in found["recipients"]}
    assert told == {one: "failure" if "+550" in one else None for one in (BAD, *others)}
    states = {one["state"] for one in found["recipients"]} - {"failed"}
    assert "queued" not in states
    # where a program looks for it
    inbox = relay.graph("GET", f"/users/{quote(APP)}/mailFolders/inbox/messages").json()["value"]
    bodies = "".join(one["body"]["content"] for one in inbox)
    assert all((one in bodies) == ("+550" in one) for one in (BAD, *others))


def test_without_a_failure_the_wait_lasts_until_its_end(relay: DevProcess) -> None:
    key = send(relay, "Invoice", GOOD)
    assert reported(relay, key, timeout=0.2)["reached"] is False
    silent = relay.submit(APP, [BAD], b"Subject: x\r\n\r\nx", rcpt_options=["NOTIFY=NEVER"])
    assert reported(relay, silent, timeout=0.5)["reached"] is False
    assert get(relay, f"{LIST}/{silent}")["state"] == "failed"


def test_a_report_of_a_host_counts(relay: DevProcess) -> None:
    key = send(relay, "Invoice", "ann+later550@customer.example")
    assert get(relay, f"{LIST}/{key}/wait", state="relayed")["reached"] is True
    assert relay.request("POST", "/relay/v1/dev/clock", b'{"advance_s": 10}').status == 200
    assert reported(relay, key)["reached"] is True


def test_a_wait_in_vain_says_what_there_was(relay: DevProcess) -> None:
    send(relay, "Welcome to Rely", GOOD)
    late = send(relay, "Reminder", LATE)
    assert get(relay, f"{LIST}/{late}/wait", state="deferred")["reached"] is True
    with relay.smtp() as session:
        session.ehlo()
        with pytest.raises(smtplib.SMTPRecipientsRefused):
            session.sendmail(APP, ["a..b@customer.example"], "Subject: x\n\nx")
    wanted = {"to": GOOD, "subject": "Welcome to Relay", "wait": 0.2}
    found = get(relay, LIST, **wanted)
    assert (found["messages"], bool(found["cursor"])) == ([], True)
    nearest = found["nearest"]
    assert (nearest["subject"], nearest["state"]) == ("Welcome to Rely", "captured")
    assert nearest["compared"] == [
        {"field": "to", "expected": GOOD, "found": GOOD, "matches": True},
        {
            "field": "subject",
            "expected": "Welcome to Relay",
            "found": "Welcome to Rely",
            "matches": False,
        },
    ]
    [waits] = found["in_flight"]
    assert (waits["id"], waits["state"], waits["reply"][:3]) == (late, "deferred", "451")
    [refused] = found["refused"]
    assert refused["reply"].startswith("501")
    after = get(relay, LIST, **wanted | {"subject": "Welcome*"}, after=found["cursor"])
    assert after["nearest"]["compared"][-1]["found"] == "before it"
    assert get(relay, LIST, kind="report", wait=0.1)["nearest"] is None
    assert "nearest" not in get(relay, LIST, to="nobody@a.test")


def test_a_long_pattern_is_compared_in_time(relay: DevProcess) -> None:
    for _ in range(5):
        send(relay, "a" * 900, *(f"{'a' * 60}{number}@customer.example" for number in range(20)))
    found = get(relay, LIST, to="a" * 1000, subject="b" + "a" * 999, wait=0.1)
    assert len(found["nearest"]["compared"][0]["expected"]) == 120
