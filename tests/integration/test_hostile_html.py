"""HTML that keeps a parser busy: it is sent like other mail and delays no other request."""

from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.conftest import SharedRelay
from tests.support.relay_process import RelayProcess, until
from tests.support.remotes import received

NOTES = 8
HOSTILE = {
    "attributes": f"<p {' '.join(f'a{i}=b' for i in range(40_000))}>seen",
    "fonts": "<div>"
    + "".join(f"<font a={i}>" for i in range(12_000))
    + "</div>"
    + "<div>x</div>" * 12_000
    + "seen",
    "bodies": "".join(f"<body {' '.join(f'a{i}x{j}=b' for j in range(100))}>" for i in range(400))
    + "seen",
}
HARMLESS = "<p>Good <b>news</b></p>"


def html(content: str) -> dict[str, dict[str, str]]:
    return {"body": {"contentType": "html", "content": content}}


def threads(relay: RelayProcess) -> int:
    assert relay.process is not None
    return len(list(Path(f"/proc/{relay.process.pid}/task").iterdir()))


def send(relay: RelayProcess, content: str, prefix: str) -> list[str]:
    """Send messages of alice's at once; returns their addresses."""
    addresses = [f"{prefix}{number}@a.test" for number in range(NOTES)]
    with ThreadPoolExecutor(NOTES) as clients:
        list(clients.map(lambda to: relay.send_mail(to=[to], **html(content)), addresses))
    return addresses


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_html_does_not_delay_other_accounts(shared: SharedRelay, kind: str) -> None:
    relay = shared.relay
    for address in send(relay, HARMLESS, f"warm-{kind}-"):
        received(shared.a, address)
    before = threads(relay)
    hostile = send(relay, HOSTILE[kind], f"hostile-{kind}-")
    relay.send_mail(token="bob", to=[f"good-{kind}@a.test"], **html(HARMLESS))
    content = received(shared.a, f"good-{kind}@a.test").content
    assert b"\r\nGood news\r\n" in content
    for address in hostile:  # it is the recipient's program that has to show it
        assert b"seen" in received(shared.a, address).content.replace(b"=\r\n", b"")
    until(
        "the threads have ended", lambda: threads(relay) < before + NOTES
    )  # a pool may have grown


def test_hostile_html_in_a_patch_does_not_delay_other_requests(shared: SharedRelay) -> None:
    relay = shared.relay
    mime = b"From: alice@example.test\r\nTo: patched@a.test\r\nContent-Type: text/html\r\n\r\n<p>a"
    headers = {"Content-Type": "text/plain"}
    draft = relay.graph("POST", "/me/messages", b64encode(mime), headers=headers)
    assert draft.status == 201, draft.body
    path = f"/me/messages/{draft.json()['id']}"
    with ThreadPoolExecutor(len(HOSTILE)) as clients:
        changes = [
            clients.submit(relay.graph, "PATCH", path, html(content))
            for content in HOSTILE.values()
        ]
        for _ in range(5):
            assert relay.graph("GET", "/me/messages", token="bob").status == 200
        assert [one.result().status for one in changes] == [200] * len(HOSTILE)
    assert "seen" in relay.graph("GET", path).json()["body"]["content"]
