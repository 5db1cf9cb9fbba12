"""kill -9 of a relay whose mail leaves by Graph, together with the relay that plays the cloud, at random.

The cloud has faults at random as well, and others have drafts and sent messages with the same Message-IDs in
its mailboxes. No message is lost, and none arrives twice.
"""

import random
from base64 import b64encode
from typing import Any

import httpx
import pytest

from tests.crash.test_storm import live
from tests.integration.test_dev_cloud import through_cloud
from tests.support.dev_process import DevProcess
from tests.support.long_tests import long
from tests.support.ports import free_port
from tests.support.relay_process import RelayProcess, until
from tests.support.scans import scanned

pytestmark = pytest.mark.crash

KILLS = 4
STATUSES = ("429", "503", "504", '"expired-token"')
SENDERS = [f"s{number}@example.test" for number in range(6)]
ANN, BEN = "ann@partner.example", "ben@partner.example"
SCANNER, SCAN_BYTES = "scanner@example.test", (200_000, 3_100_000)  # a POST, and an upload session
PRINTER = "printer@contoso.example"
OTHERS = "others@partner.example"
ADVANCE_S, ADVANCES_MAX = 150, 30  # a draft is sent again after two minutes, made anew after ten


@pytest.mark.parametrize("seed", [0, *(pytest.param(one, marks=long) for one in range(1, 11))])
def test_nothing_is_lost_and_nothing_arrives_twice(seed: int) -> None:
    rng = random.Random(seed)
    port = next(one for one in iter(free_port, 0) if free_port() == one + 1)  # the cloud's is next
    ports = [f"--http={port}", *(f"--{one}=0" for one in ("https", "smtp", "submission"))]
    with DevProcess("--cloud", "--no-demo", "--submissions=0", ports=ports) as relay:
        subjects = [f"{kill} {sender}" for kill in range(KILLS) for sender in SENDERS]
        for subject in subjects:
            others(relay, *subject.split())
        for kill in range(KILLS):
            toml = {"Content-Type": "application/toml"}
            ask(relay, "PUT", "/relay/v1/dev/internet", content=faults(rng), headers=toml)
            for sender in SENDERS:
                head = f"From: {sender}\r\nTo: {ANN}, {BEN}\r\nSubject: {kill} {sender}\r\n"
                text = f"{head}Message-ID: <{kill}.{sender}>\r\n\r\nx\r\n"
                for recipient in (ANN, BEN):  # one Message-ID, as many programs send it
                    relay.submit(sender, [recipient], text.encode())
            relay.submit(
                SCANNER, [ANN], scanned(*SCAN_BYTES, subject=f"{kill} scan", sender=SCANNER)
            )
            live(relay, rng.uniform(0, 1.5))
            if rng.random() < 0.5:  # what may have been sent is ordered, over the kill
                relay.cli("queue", "hold", "--all")
            relay.restart()
        for _ in range(ADVANCES_MAX):
            if relay.queue():
                relay.cli("queue", "release", "--all")
                relay.advance(ADVANCE_S)
        assert relay.queue() == []
        assert ask(relay, "POST", "/relay/v1/quiet", json={"timeout_s": 60})["quiet"] is True
        scans = [f"{kill} scan" for kill in range(KILLS)]
        for mailbox, more in ((ANN, scans), (BEN, [])):
            assert found(relay, mailbox, "inbox") == sorted(subjects + more)
        assert found(relay, SCANNER, "drafts") == []
        assert found(relay, OTHERS, "inbox") == ["of others"] * len(subjects)
        for sender in SENDERS:
            drafts = found(relay, sender, "drafts")
            assert drafts.count("of others") == KILLS, "what Relay did not make, stays"


def test_each_failure_has_its_report() -> None:
    """Only the relay is killed, where it sends reports by Graph."""
    rng = random.Random(5)
    with DevProcess("--cloud", "--no-demo") as beside:
        config = through_cloud(beside, SENDERS[0])  # which may not send as the printer
        with RelayProcess(config=config) as relay:
            subjects = [f"{kill} {number}" for kill in range(KILLS) for number in range(3)]
            for kill in range(KILLS):
                for subject in subjects[3 * kill :][:3]:
                    text = f"From: {PRINTER}\r\nSubject: {subject}\r\n\r\nx\r\n"
                    relay.submit(PRINTER, [ANN], text.encode())
                live(relay, rng.uniform(0, 0.6))
                relay.restart()
            until("all ends", lambda: not relay.queue(), timeout_s=300)
            ask(beside, "POST", "/relay/v1/quiet", json={"timeout_s": 60})
            reports = found(beside, PRINTER, "inbox")
    assert set(reports) == {f"Undeliverable: {subject}" for subject in subjects}
    assert max(map(reports.count, reports)) <= 2, "after a lost answer"


def others(relay: DevProcess, kill: str, sender: str) -> None:
    """Make a draft and send a message with a Message-ID that a message of Relay has later."""
    headers = {"Authorization": f"Bearer {sender}", "Content-Type": "text/plain"}
    head = f"From: {sender}\r\nTo: {OTHERS}\r\nSubject: of others\r\n"
    text = b64encode(f"{head}Message-ID: <{kill}.{sender}>\r\n\r\nx\r\n".encode())
    for path in ("messages", "sendMail"):
        ask(relay, "POST", f"/v1.0/me/{path}", content=text, headers=headers)


def faults(rng: random.Random) -> str:
    """A scenario in which some requests fail, at each place of a message's way."""
    return "".join(
        f'[[graph]]\nstatus = {rng.choice(STATUSES)}\npath = "{path}"\nretry_after = 1\n'
        f"times = {rng.randint(1, 4)}\n"
        for path in rng.sample(["*/messages", "*/send", "*", "*/messages*", "*/attachments*"], 3)
    )


def found(relay: DevProcess, mailbox: str, folder: str) -> list[str]:
    """The subjects in a folder of the cloud."""
    path = f"/v1.0/me/mailFolders/{folder}/messages?$top=500&$select=subject"
    headers = {"Authorization": f"Bearer {mailbox}"}
    return sorted(one["subject"] for one in ask(relay, "GET", path, headers=headers)["value"])


def ask(relay: DevProcess, method: str, path: str, **more: Any) -> Any:
    """What the cloud answers."""
    url = relay.ready["cloud"].rstrip("/") + path
    answer = httpx.request(method, url, trust_env=False, timeout=90, **more)
    assert answer.is_success, answer.text
    return answer.json() if "json" in answer.headers.get("content-type", "") else None
