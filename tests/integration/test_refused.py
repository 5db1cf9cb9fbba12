"""What a service refuses is seen: in the API, by `relay trace`, in the log and the metrics, after a restart too."""

import json
import smtplib
import stat
from email.message import EmailMessage

import pytest

from tests.support.relay_config import OPERATOR
from tests.support.relay_process import RelayProcess

OK, DATA = 0, 65
RULE = """\
[[rule]]
name = "no executables"
when = { attachment_name = ["*.exe"] }
then = [ { reject = "5.7.1 No programs, please" } ]
"""


@pytest.fixture(scope="module")
def relay(serve_module) -> RelayProcess:
    return serve_module(policies={"10-exe.toml": RULE})


def refused(relay: RelayProcess, query: str = "", *, token: str = OPERATOR) -> list[dict]:
    answer = relay.graph("GET", f"/relay/v1/refused{query}", token=token)
    assert answer.status == 200, answer
    return answer.json()["refused"]


def program(sender: str, recipient: str) -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = sender, recipient, "Setup program"
    message.set_content("Just run it.")
    message.add_attachment(
        b"MZ", maintype="application", subtype="octet-stream", filename="setup.exe"
    )
    return message


def test_a_rule_is_seen_by_everyone_who_asks(relay):
    with relay.smtp() as client, pytest.raises(smtplib.SMTPDataError):
        client.send_message(program("app@example.test", "ann@customer.example"))
    (one,) = refused(relay, "?address=app@example.test")
    assert (one["reason"], one["rule"], one["subject"]) == (
        "rule",
        "no executables",
        "Setup program",
    )
    assert one["recipients"] == ["ann@customer.example"]
    text = "No programs, please"
    shown = (
        'refused 550 5.7.1 app@example.test -> ann@customer.example "Setup program"'
        f' (rule "no executables": {text})'
    )
    for key in ("app@example.test", "ANN@customer.example", "127.0.0.1"):
        done = relay.cli("trace", key)
        assert done.returncode == OK, done.stderr
        assert shown in done.stdout
    assert relay.cli_json("trace", "app@example.test") == {"refused": [one]}
    assert relay.cli("trace", "192.0.2.77").returncode == DATA
    assert relay.metric("relay_smtp_refusals_total", reason="rule") == 1
    assert relay.metric("relay_smtp_sessions_total", role="relay") >= 1
    assert '"rule":"no executables"' in relay.log


def test_records_survive_a_restart_and_are_read_without_a_relay(relay):
    with relay.smtp() as client:
        assert client.docmd("SESAME")[0] == 500
    before = refused(relay)
    (file,) = (relay.folder / "state/refused").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    relay.stop()
    assert [json.loads(line)["at"] for line in file.read_text().splitlines()] == [
        one["at"] for one in reversed(before)
    ]
    assert "refused 500" in relay.cli("trace", "127.0.0.1").stdout
    relay.start()
    assert refused(relay) == before
    assert relay.cli_json("storage", "prune", "--older-than", "1d")["refused"] == 0
    assert relay.cli_json("storage", "prune", "--older-than", "0s", "--dry-run")["refused"] == len(
        before
    )
    assert relay.cli_json("storage", "prune", "--older-than", "0s")["refused"] == len(before)
    assert refused(relay) == []
