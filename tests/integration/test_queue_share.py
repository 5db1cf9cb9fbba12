"""The queue's bound: one account or sender that fills it is refused, and others go on."""

from collections.abc import Iterator
from functools import partial
from smtplib import SMTP

import pytest

from tests.support.relay_config import account
from tests.support.relay_process import RelayProcess, until

BOUND = 40
ALICE, EVE = "alice@example.test", "eve@example.test"


@pytest.fixture(scope="module")
def relay(serve_module) -> Iterator[RelayProcess]:
    """Its name server answers nothing: all mail to other domains waits."""
    config = {"pressure": {"queue_entries": BOUND}, "dns": {"nameservers": ["127.0.0.1:9"]}}
    accounts = [account("eve")]
    relay = serve_module(config=config, accounts=accounts)
    assert relay.cli("pause", "delivery").returncode == 0
    return relay


def send(relay: RelayProcess, who: str, number: int) -> int:
    to = [{"emailAddress": {"address": f"x@d{count}.test"}} for count in range(number)]
    message = {"subject": "s", "body": {"content": "x"}, "toRecipients": to}
    return relay.graph("POST", "/me/sendMail", {"message": message}, token=who).status


def counted(relay: RelayProcess) -> float:
    return sum(relay.metric("relay_queue_entries", state=state) for state in ("queued", "deferred"))


def has_grown(relay: RelayProcess, before: float) -> bool:
    return counted(relay) > before


def is_full_for(relay: RelayProcess, who: str) -> bool:
    answer = relay.graph("POST", "/me/sendMail", {"message": {}}, token=who)
    return answer.status == 503 and b"as much of your mail" in answer.body


def offer(client: SMTP, sender: str, to: str) -> bytes:
    """The answer to one more message."""
    client.docmd(f"MAIL FROM:<{sender}>")
    client.docmd(f"RCPT TO:<{to}>")
    return bytes(client.data(b"Subject: s\r\n\r\nx\r\n")[1])


def test_who_has_half_of_the_queue_is_refused_and_others_are_not(relay: RelayProcess) -> None:
    assert not is_full_for(relay, "eve")
    assert send(relay, "eve", BOUND // 2) == 202
    until("eve has her share", lambda: is_full_for(relay, "eve"), timeout_s=60)
    assert not is_full_for(relay, "alice")
    assert send(relay, "alice", 2) == 202
    with relay.smtp() as client:
        client.ehlo()
        assert b"queued" in offer(client, EVE, ALICE)  # this client is not eve
        for number in range(BOUND):  # neither its names nor its reverse-paths are keys
            client.ehlo(f"[10.0.0.{number}]")
            before = counted(relay)
            sender = f"v{number}@elsewhere.test" if number % 2 else ""
            if b"as much of your mail" in offer(client, sender, "x@d1.test"):
                break
            until("counted", partial(has_grown, relay, before), timeout_s=60)
        assert 2 < number < BOUND // 2 - 3
    ready = relay.get("/readyz")
    assert ready.status_code == 200
    assert "full: queue entries" in ready.text
    assert EVE not in ready.text
    assert relay.metric("relay_shares_refused_total", bound="queue entries") >= 1
    assert '"bound":"queue entries","most":"eve@example.test"' in relay.log
    selector = ("queue", "cancel", "--sender", EVE)
    assert relay.cli(*selector).returncode == 0
    until("eve sends again", lambda: not is_full_for(relay, "eve"), timeout_s=60)
