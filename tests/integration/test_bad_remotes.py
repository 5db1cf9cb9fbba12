"""Remote servers that stall, close or send invalid replies, and name servers that fail: mail is deferred and retried."""

import asyncio
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
    "dns": {"timeout": "2s"},
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
    hosts = {
        f"{name.lower()}.test": remotes.start(f"{name.lower()}.test", **options)
        for name, options in troubles()
    }
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


def test_the_relay_still_delivers(shared: tuple[Remotes, RelayProcess]) -> None:
    relay = shared[1]
    relay.until_state(submit(relay, "end@well.test"), "relayed")
    until("the queue is empty", lambda: not relay.queue())
    until("counted", lambda: relay.metric("relay_queue_unaccounted") == 0)
    assert relay.faults() == []
    assert all(report.failed_addresses for report in reports_of(relay))
