"""A key that cannot sign, such as one in a token that does not answer: no mail leaves unsigned, and none is lost."""

import json
import smtplib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.dkim import DkimKeys, named_keys, routing_of, signatures
from tests.support.relay_process import ROOT, RelayProcess, until
from tests.support.remote_mx import RemoteMx
from tests.support.remotes import Remotes, received

ALICE = "alice@example.test"
STRANGER = "127.0.0.9"
# Python runs this at its start: no RSA key signs while the file is there.
FAILING = """
from pathlib import Path

from relay.transport.signing import private_keys

usual = private_keys.RsaKey.sign


def sign(self, octets):
    if octets and Path({file!r}).exists():  # not the check of a key at the start
        raise RuntimeError("the token does not answer")
    return usual(self, octets)


private_keys.RsaKey.sign = sign
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dkim")


@pytest.fixture(scope="module")
def keys(folder: Path) -> DkimKeys:
    """The second key of the domain fails."""
    names = {("example.test", "ed"): "ed25519", ("example.test", "rsa"): "rsa"}
    return DkimKeys.made(folder, names)


@pytest.fixture(scope="module")
def remote(remotes_module: Remotes) -> RemoteMx:
    return remotes_module.start("a.test", rcpt={"nobody@a.test": "550 5.1.1 No such user"})


@pytest.fixture(scope="module")
def relay(
    remotes_module: Remotes, remote: RemoteMx, keys: DkimKeys, folder: Path, serve_module
) -> RelayProcess:
    (folder / "sitecustomize.py").write_text(FAILING.format(file=str(folder / "failing")))
    faulty = {"PYTHONPATH": f"{folder}:{ROOT}"}
    return serve_module(remotes_module, config=keys.config, environment=faulty)


@pytest.fixture
def failing(folder: Path) -> Iterator[Path]:
    """The file while which is there no key signs."""
    file = folder / "failing"
    file.touch()
    yield file
    file.unlink(missing_ok=True)


def letter(to: str, sender: str = ALICE) -> bytes:
    return f"From: {sender}\r\nTo: {to}\r\nSubject: {to}\r\n\r\nHello.\r\n".encode()


def failures(relay: RelayProcess) -> float:
    return relay.metric("relay_dkim_signatures_total", domain="example.test", result="failed")


def log_lines(relay: RelayProcess, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in relay.log.splitlines()]
    return [one for one in lines if one["event"] == event]


def test_an_smtp_client_gets_451_and_nothing_is_accepted(
    relay: RelayProcess, remote: RemoteMx, keys: DkimKeys, failing: Path
) -> None:
    lines, failed = len(log_lines(relay, "signing failed")), failures(relay)
    accepted = relay.metric("relay_messages_accepted_total")
    with relay.smtp() as session:
        with pytest.raises(smtplib.SMTPDataError) as refused:
            session.sendmail(ALICE, ["smtp@a.test", "bob@example.test"], letter("smtp@a.test"))
        assert (refused.value.smtp_code, refused.value.smtp_error[:5]) == (451, b"4.3.0")
        assert b"token" not in refused.value.smtp_error
        assert (relay.queue(), relay.subjects("bob")) == ([], [])
        assert relay.metric("relay_messages_accepted_total") == accepted
        [line] = log_lines(relay, "signing failed")[lines:]
        assert line["level"] == "error"
        assert (
            line["error"] == "rsa._domainkey.example.test: RuntimeError: the token does not answer"
        )
        assert failures(relay) == failed + 1
        failing.unlink()
        session.sendmail(ALICE, ["smtp@a.test"], letter("smtp@a.test"))
    octets = received(remote, "smtp@a.test").content
    assert keys.verified(octets) == keys.of_domain("example.test")


def test_a_submission_of_graph_waits_until_keys_sign_again(
    relay: RelayProcess, remote: RemoteMx, keys: DkimKeys, failing: Path
) -> None:
    before = failures(relay)
    key = relay.send_mail(to=["graph@a.test"], subject="graph")
    until("it is tried again", lambda: failures(relay) >= before + 2)
    relay.restart()
    until("and after a kill", lambda: failures(relay) >= 2)
    journey = relay.journey(key)
    assert journey["state"] == "converting"
    assert (relay.queue(), relay.messages("inbox")) == ([], [])
    assert remote.received("graph@a.test") == []
    failing.unlink()
    assert relay.until_final(key)["state"] == "relayed"
    octets = received(remote, "graph@a.test").content
    assert keys.verified(octets) == keys.of_domain("example.test") == named_keys(relay.journey(key))
    assert [one["subject"] for one in relay.messages("sentitems")] == ["graph"]
    assert (relay.messages("inbox"), relay.pending_submissions()) == ([], [])


def test_a_report_leaves_unsigned(relay: RelayProcess, remote: RemoteMx, failing: Path) -> None:
    """It must not be lost, and the mail that it is about is of a domain without keys."""
    lines, failed = len(log_lines(relay, "a report is not signed")), failures(relay)
    key = relay.submit("sender@a.test", ["nobody@a.test"], letter("nobody@a.test", "sender@a.test"))
    octets = received(remote, "sender@a.test").content
    assert (signatures(octets), b"Action: failed" in octets) == (0, True)
    [report] = [one["detail"] for one in relay.until_final(key)["steps"] if one["step"] == 7]
    assert routing_of(relay.journey(report["report_id"]))["unsigned"] == "signing failed"
    [line] = log_lines(relay, "a report is not signed")[lines:]
    assert line["error"] == "rsa._domainkey.example.test: RuntimeError: the token does not answer"
    assert failures(relay) == failed + 1


def test_what_is_not_signed_is_accepted(relay: RelayProcess, failing: Path) -> None:
    assert failing.exists()
    relay.until_final(
        relay.submit("eve@other.test", ["carol@example.test"], letter("carol"), source=STRANGER)
    )
    assert relay.subjects("carol") == ["carol"]
