"""Remote servers that stall, close or send invalid replies, and name servers that fail: mail is deferred and retried."""

import asyncio
import re
import threading
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest

from tests.support.relay_process import RelayProcess, until
from tests.support.remote_mx import DROP
from tests.support.remotes import Remotes, received
from tests.support.reports import report_about, reports_of

STAGES = ["CONNECT", "EHLO", "MAIL", "RCPT", "DATA", "DOT"]
NONSENSE = {
    "words": "hello, who is there?",
    "a wrong class": "102 processing",
    "binary": "\x80\x01\x02",
    "an endless line": "250 " + "x" * 100_000,
}
TIMES: dict[str, Any] = {
    "delivery": {
        "command_timeout": "1s",
        "connect_timeout": "2s",
        "retry": [0.2],
        "indeterminate_max": 100,
    },
}


@pytest.fixture(scope="module")
def shared(remotes_module, serve_module) -> tuple[Remotes, RelayProcess]:
    """A relay that waits one second for a reply."""
    remotes_module.start("well.test")
    return remotes_module, serve_module(remotes_module, config=TIMES)


def submit(relay: RelayProcess, address: str) -> str:
    return relay.submit("alice@example.test", [address])


def troubles() -> Iterator[tuple[str, dict[str, Any]]]:
    """What remote hosts do to an attempt that is to be repeated: a name, and the options of RemoteMx."""
    for stage in (*STAGES, "CONTENT"):
        ends = {stage: DROP} | ({"HELO": DROP} if stage == "EHLO" else {})
        yield f"closes-{stage}", {"replies": ends}
    for stage, (kind, reply) in product(STAGES, NONSENSE.items()):
        yield f"{kind.replace(' ', '-')}-{stage}", {"replies": {stage: reply}}
    for stage in STAGES[:-1]:
        yield f"stalls-{stage}", {"gates": {stage: asyncio.Event()}}
    for stage in STAGES[1:]:
        yield f"later-{stage}", {"replies": {stage: "451 4.3.0 come again"}}
    for number, more in enumerate(("250 2.0.0 Ok\r\n250 2.0.0 and one more", "250 Ok\r\n354 go")):
        yield f"surplus-{number}", {"replies": {"MAIL": more}}


def test_mail_is_deferred_by_each_trouble_of_a_remote_host_and_retried(
    shared: tuple[Remotes, RelayProcess],
) -> None:
    remotes, relay = shared
    hosts = {f"{name.lower()}.test": remotes.start(f"{name.lower()}.test", **options)
             for name, options in troubles()}  # fmt: skip
    sent = {domain: submit(relay, f"x@{domain}") for domain in hosts}
    for domain, identity in sent.items():
        (reported,) = relay.until_state(identity, "deferred")["recipients"]
        assert reported["attempts"][0]["outcome"] in ("deferred", "indeterminate"), domain
        assert reported["status"].startswith("4."), domain
        hosts[domain].replies, hosts[domain].gates = {}, {}
    for domain, identity in sent.items():
        relay.until_state(identity, "relayed")
        assert hosts[domain].received(f"x@{domain}"), domain


def test_a_host_without_an_answer_to_the_dot_gets_three_copies_and_the_sender_one_report(
    remotes: Remotes, serve
) -> None:
    mx = remotes.start("odd.test", replies={"DOT": "queued as 17\r\n250 2.0.0 Ok"})
    relay = serve(remotes, config={"delivery": {"retry": [0.1]}})
    relay.until_state(submit(relay, "x@odd.test"), "failed")
    report = report_about(relay, "x@odd.test")
    assert relay.metric("relay_reports_total", kind="unknown") == 1
    assert relay.metric("relay_reports_total") == 1
    assert len(mx.envelopes) == 3
    about = report.recipients["x@odd.test"]
    assert (about["action"], about["status"]) == ("failed", "5.4.2")
    assert "It is not known whether it has arrived." in str(report.message)


def test_permanent_rejection_bounces(shared: tuple[Remotes, RelayProcess]) -> None:
    remotes, relay = shared
    for stage in ("MAIL", "RCPT", "DATA", "DOT"):
        address = f"x@never-{stage.lower()}.test"
        remotes.start(address[2:], replies={stage: "554 5.7.1 not here"})
        relay.until_state(submit(relay, address), "failed")
        report = report_about(relay, address)
        assert report.recipients[address]["diagnostic-code"] == "smtp; 554 5.7.1 not here"
        assert report.failed_addresses == {address}


def test_a_stalled_site_does_not_delay_another(remotes: Remotes, serve) -> None:
    gate = asyncio.Event()
    stalled = remotes.start("stalled.test", gates={"DOT": gate})
    well = remotes.start("well.test")
    limits = {"max_connections": 30, "max_connections_per_next_hop": 5}
    relay = serve(remotes, config={"delivery": limits})
    for number in range(60):
        submit(relay, f"x{number}@stalled.test")
    until("a connection is open", lambda: stalled.open)
    relay.until_state(submit(relay, "x@well.test"), "relayed")
    received(well, "x@well.test")
    assert stalled.open
    assert not any(one.answered for one in stalled.envelopes)
    remotes.open_gate(gate)
    until("all were received", lambda: len(stalled.envelopes) == 60)
    assert stalled.most_open <= 5


def test_concurrency_at_a_healthy_site_grows_to_twenty(remotes: Remotes, serve) -> None:
    gate = asyncio.Event()
    gate.set()
    mx = remotes.start("busy.test", gates={"DOT": gate})
    relay = serve(remotes)
    for number in range(20):
        submit(relay, f"first{number}@busy.test")
    until("concurrency has grown", lambda: len(mx.envelopes) == 20)
    gate.clear()
    mx.envelopes.clear()
    threads = [
        threading.Thread(target=submit, args=(relay, f"x{number}@busy.test"))
        for number in range(40)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    until("twenty are open", lambda: len(mx.envelopes) == 20)
    assert mx.open == mx.most_open == 20
    remotes.open_gate(gate)
    until("all were received", lambda: len(mx.envelopes) == 40)
    assert mx.most_open == 20
    assert sorted(address for one in mx.envelopes for address in one.addresses) == sorted(
        f"x{number}@busy.test" for number in range(40)
    )


def test_the_next_mx_host_is_used_when_the_first_is_down(
    shared: tuple[Remotes, RelayProcess],
) -> None:
    remotes, relay = shared
    mx = remotes.start("second.test")
    remotes.dns.zone["second.test"] = {"MX": ["10 away.second.test.", "20 mx.second.test."]}
    remotes.dns.zone["away.second.test"] = {"A": ["127.0.0.9"]}
    relay.until_state(submit(relay, "x@second.test"), "relayed")
    received(mx, "x@second.test")


@pytest.mark.parametrize("trouble", ["SERVFAIL", "REFUSED", "TIMEOUT"])
def test_dns_failures_are_retried(shared: tuple[Remotes, RelayProcess], trouble: str) -> None:
    remotes, relay = shared
    domain = f"{trouble.lower()}.test"
    mx = remotes.start(domain)
    records = remotes.dns.zone[domain]
    remotes.dns.zone[domain] = trouble
    identity = submit(relay, f"x@{domain}")
    (reported,) = relay.until_state(identity, "deferred")["recipients"]
    assert reported["status"] == "4.4.3"
    remotes.dns.zone[domain] = records
    relay.until_state(identity, "relayed")
    received(mx, f"x@{domain}")


@pytest.mark.parametrize(
    ("domain", "records", "status"),
    [
        ("null.test", {"MX": ["0 ."]}, "5.1.10"),
        ("nowhere.test", "NXDOMAIN", "5.1.2"),
        ("empty.test", {"MX": ["10 gone.empty.test."]}, "5.4.4"),
    ],
)
def test_null_mx_and_unknown_domains_bounce(
    shared: tuple[Remotes, RelayProcess], domain: str, records: Any, status: str
) -> None:
    remotes, relay = shared
    remotes.dns.zone[domain] = records
    identity = relay.send_mail(to=[f"x@{domain}"], subject=domain)
    relay.until_state(identity, "failed")
    report = report_about(relay, f"x@{domain}")
    assert report.recipients[f"x@{domain}"]["status"] == status
    assert report.failed_addresses == {f"x@{domain}"}
    assert str(report.returned["subject"]) == domain


def test_expired_mail_bounces(remotes: Remotes, serve) -> None:
    mx = remotes.start("never.test", replies={"RCPT": "450 4.2.1 not today"})
    relay = serve(remotes, config={"delivery": {"expire_after": "2s", "retry": [0.3]}})
    identity = relay.send_mail(to=["x@never.test"], subject="too late")
    (reported,) = relay.until_final(identity)["recipients"]
    assert reported["state"] == "expired"
    assert len(reported["attempts"]) > 1
    report = report_about(relay, "x@never.test")
    assert report.recipients["x@never.test"]["action"] == "failed"
    assert re.fullmatch(r"4\.4\.7|5\.4\.7", report.recipients["x@never.test"]["status"])
    assert "450 4.2.1 not today" in bytes(report.message).decode()
    assert mx.envelopes == []
    until("the report is settled", lambda: not relay.queue())


def test_the_relay_still_delivers(shared: tuple[Remotes, RelayProcess]) -> None:
    relay = shared[1]
    relay.until_state(submit(relay, "end@well.test"), "relayed")
    until("the queue is empty", lambda: not relay.queue())
    until("counted", lambda: relay.metric("relay_queue_unaccounted") == 0)
    assert relay.faults() == []
    assert all(report.failed_addresses for report in reports_of(relay))
