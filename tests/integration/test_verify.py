"""`relay storage verify` while a relay runs and without one: output and exit codes."""

import json
import threading

import pytest

from tests.support.relay_process import RelayProcess, until

OK, DATA = 0, 65
TEXT = "x" * 2000


@pytest.fixture
def relay(serve):
    return serve()


def verified(relay: RelayProcess, *words: str) -> dict:
    done = relay.cli("storage", "verify", "--json", *words)
    assert done.returncode in (OK, DATA), done.stderr
    return {**json.loads(done.stdout), "code": done.returncode}


class People(threading.Thread):
    """A user who sends, drafts, changes, moves, lists and receives until stopped."""

    def __init__(self, relay: RelayProcess, name: str) -> None:
        super().__init__()
        self.relay, self.person = relay, name
        self.sent: list[str] = []
        self.trouble: list[str] = []
        self.enough = threading.Event()

    def run(self) -> None:
        number = 0
        while not self.enough.is_set():
            number += 1
            try:
                self.do(f"{self.person} {number}")
            except Exception as error:  # noqa: BLE001 - reported by the test
                self.trouble.append(repr(error))

    def do(self, subject: str) -> None:
        graph, token = self.relay.graph, self.person
        to = ["alice@example.test", "bob@example.test"]
        self.sent.append(self.relay.send_mail(to=to, subject=subject, text=TEXT, token=token))
        draft = graph("POST", "/me/messages", {"subject": subject}, token=token)
        assert draft.status == 201, draft.body
        path = f"/me/messages/{draft.json()['id']}"
        for change in ({"isRead": False}, {"subject": f"{subject}!"}):
            answer = graph("PATCH", path, change, token=token)
            assert answer.status == 200, answer.body
        moved = graph("POST", f"{path}/move", {"destinationId": "archive"}, token=token)
        assert moved.status == 201, moved.body
        self.relay.messages("archive", token=token)
        assert graph("DELETE", path, token=token).status == 204


def test_verify_finds_nothing_while_the_relay_runs(relay):
    people = [People(relay, name) for name in ("alice", "bob")]
    for one in people:
        one.start()
    try:
        until("both have sent a message", lambda: all(one.sent for one in people))
        found = [verified(relay), verified(relay, "--full")]
    finally:
        for one in people:
            one.enough.set()
        for one in people:
            one.join()
    assert [one["findings"] for one in found] == [[], []]
    assert [one.trouble for one in people] == [[], []]
    assert [one["code"] for one in found] == [OK, OK]
    sent = [identity for one in people for identity in one.sent]
    for identity in sent:
        assert relay.until_final(identity)["state"] == "delivered"
    assert len(relay.subjects("alice")) == len(sent) == len(relay.subjects("bob"))
    assert relay.faults() == []
    last = verified(relay, "--full")
    assert (last["findings"], last["submissions"]) == ([], {"ready": 0, "scheduled": 0})
