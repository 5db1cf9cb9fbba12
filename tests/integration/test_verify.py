"""`relay storage verify` while a relay runs and without one: output and exit codes."""

import json
import os
import threading

import pytest

from relay.mailbox.message_file import parse_name
from tests.support.relay_process import RelayProcess, until

OK, DATA = 0, 65
TEXT = "x" * 2000


@pytest.fixture
def relay():
    with RelayProcess() as started:
        yield started


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
        found = [verified(relay), verified(relay, "--full"), verified(relay, "--dry-run")]
    finally:
        for one in people:
            one.enough.set()
        for one in people:
            one.join()
    assert [one["findings"] for one in found] == [[], [], []]
    assert [one.trouble for one in people] == [[], []]
    assert all(one["code"] == OK and one["mailboxes"] >= 1 for one in found)
    sent = [identity for one in people for identity in one.sent]
    for identity in sent:
        assert relay.until_final(identity)["state"] == "delivered"
    assert len(relay.subjects("alice")) == len(sent) == len(relay.subjects("bob"))
    assert relay.faults() == []
    last = verified(relay, "--full")
    assert (last["findings"], last["submissions"]["ready"], last["submissions"]["corrupt"]) == (
        [],
        0,
        [],
    )
    assert last["messages"] == 4 * len(sent)


def test_verify_prints_repairs_and_remaining_faults(relay):
    for _ in range(2):
        relay.until_final(relay.send_mail(to=["bob@example.test"]))
    path, short = sorted(relay.home("bob").glob("new/*"))
    path.rename(path.with_name(f"{path.name.partition(',')[0]},S=9"))
    os.truncate(short, 300)
    dry = relay.cli("storage", "verify", "--dry-run")
    assert (dry.returncode, dry.stdout.count("REMAINS")) == (DATA, 2), dry.stdout
    done = relay.cli("storage", "verify", "bob@example.test")
    assert (done.returncode, done.stderr) == (DATA, "")
    lines = done.stdout.splitlines()
    assert len(lines) == 4, done.stdout
    assert any(f"renamed to {path.name}" in one and one.startswith("repaired") for one in lines)
    assert any(",S=300" in one and one.startswith("REMAINS   truncated") for one in lines)
    assert lines[-1] == "1 fault repaired, 1 remaining"
    again = relay.cli("storage", "verify")
    assert (again.returncode, again.stdout.splitlines()[-1]) == (
        OK,
        "0 faults repaired, 0 remaining",
    )
    assert path.exists()
    after = [one["id"] for one in relay.messages("inbox", token="bob")]
    assert set(after) == {parse_name(one.name).message_id for one in (path, short)}


def test_without_a_relay_it_works_the_same(relay):
    relay.until_final(relay.send_mail(to=["bob@example.test"]))
    relay.messages("inbox", token="bob")
    assert relay.stop() == 0
    index = relay.home("bob") / "relay-index"
    index.write_bytes(b"garbage" * 1000)
    found = verified(relay)
    assert [(one["kind"], one["repaired"]) for one in found["findings"]] == [
        ("damaged-index", True)
    ]
    assert (found["code"], verified(relay)["findings"]) == (OK, [])
    relay.start()
    assert len(relay.messages("inbox", token="bob")) == 1


def test_a_note_waits_for_a_relay_that_is_not_there(relay):
    relay.send_mail(to=["bob@example.test"])
    relay.kill()
    found = verified(relay)
    assert (found["findings"], found["code"]) == ([], OK)
