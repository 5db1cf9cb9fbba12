"""Batches over a large mailbox stay small in memory."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.support.long_tests import long
from tests.support.relay_process import RelayProcess

MAIL_BYTES = 180_000_000
GROWTH_BYTES_MAX = 300_000_000
BATCHES = 4
PARTS = 20
JANUARY = 1_704_067_200
LINE = b"0123456789" * 7 + b"\r\n"


def fill(relay: RelayProcess, message_bytes: int) -> int:
    """Put MAIL_BYTES of mail into alice's Inbox, as another program does; return the number."""
    directory = relay.home("alice") / "cur"
    head = b"From: a@a.test\r\nSubject: number %d\r\n\r\n"
    body = LINE * (message_bytes // len(LINE))
    count = MAIL_BYTES // message_bytes
    for number in range(count):
        path = directory / f"{JANUARY + number}.M{number}.host:2,S"
        path.write_bytes(head % number + body)
    return count


def ask(relay: RelayProcess, urls: list[str]) -> list[dict[str, Any]]:
    """The responses of one batch."""
    requests = [{"id": str(at), "method": "GET", "url": url} for at, url in enumerate(urls)]
    headers = {"Authorization": "Bearer alice", "Content-Type": "application/json"}
    body = json.dumps({"requests": requests}).encode()
    answer = relay.request("POST", "/v1.0/$batch", body, headers, timeout_s=120)
    assert answer.status == 200
    return list(answer.json()["responses"])


@long
@pytest.mark.parametrize(
    ("kind", "message_bytes"),
    [("messages", 9_000_000), ("lists", 100_000), ("expanded", 9_000_000)],
)
def test_four_batches_over_a_large_mailbox(message_bytes: int, kind: str, serve) -> None:
    relay = serve()
    assert relay.graph("GET", "/me/mailFolders/inbox").status == 200
    count = fill(relay, message_bytes)
    listed = relay.graph("GET", "/me/messages?$top=1000&$select=id").json()["value"]
    listing = "/me/messages?$top=1000" + ("&$expand=attachments" if kind == "expanded" else "")
    urls = [listing] * PARTS
    if kind == "messages":
        urls = [f"/me/messages/{listed[at % len(listed)]['id']}" for at in range(PARTS)]
    before_bytes = relay.memory_bytes(reset=True)
    with ThreadPoolExecutor(BATCHES) as threads:
        answers = list(threads.map(lambda _: ask(relay, urls), range(BATCHES)))
    grown_bytes = relay.memory_bytes() - before_bytes
    print(
        f"{kind} of {message_bytes}: {count} messages, {grown_bytes} bytes more"
    )  # shown if it fails
    assert grown_bytes < GROWTH_BYTES_MAX
    for responses in answers:
        assert {one["status"] for one in responses} <= {200, 413, 503}
        assert any(one["status"] == 200 for one in responses)
