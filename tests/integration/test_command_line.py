"""The command line against a running relay, and against its files: facts, JSON, exit codes."""

import json
import os
import signal
import socket
from pathlib import Path

import pytest

from tests.integration.conftest import SharedRelay
from tests.support.relay_config import OPERATOR
from tests.support.relay_process import RelayProcess, until
from tests.support.remotes import Remotes, received

OK, USAGE, DATA, UNAVAILABLE, TRY_LATER, NO_PERMISSION, CONFIGURATION = 0, 64, 65, 69, 75, 77, 78


def test_send_wait_trace_queue(shared: SharedRelay) -> None:
    relay = shared.relay
    attachment = relay.folder / "notes.txt"
    attachment.write_text("notes")
    sent = relay.cli_json(
        "send", "--token", "alice", "--to", "sent@a.test", "--subject", "by hand", "--body", "x",
        "--attach", str(attachment), "--config", str(relay.client_config()),
    )  # fmt: skip
    waited = relay.cli_json("wait", sent["id"])
    assert waited["state"] == "relayed"
    assert waited["graph_id"] == sent["id"]
    assert b"notes.txt" in received(shared.a, "sent@a.test").content
    until("step 4 is recorded", lambda: len(relay.journey(sent["id"])["steps"]) == 6)
    traced = relay.cli_json("trace", "last")
    assert traced == relay.journey(sent["id"])
    for key in (traced["id"], traced["submission_id"], traced["message_id"], "sent@a.test"):
        assert relay.cli_json("trace", key)["id"] == traced["id"], key
    shown = relay.cli_json("queue", "show", traced["id"])
    assert (shown["id"], shown["entries"]) == (traced["id"], [])
    expected_text = relay.cli("trace", "last").stdout
    assert all(
        f" {number} {name}" in expected_text for number, name in ((1, "created"), (6, "delivery"))
    )


def test_send_by_smtp_from_standard_input(shared: SharedRelay) -> None:
    words = ("send", "--from", "bob@example.test", "--to", "stdin@a.test")
    config = ("--config", str(shared.relay.client_config()))
    done = shared.relay.cli(*words, *config, stdin="from a pipe\n")
    assert (done.returncode, done.stderr) == (OK, "")
    assert shared.relay.until_final(done.stdout.strip())["state"] == "relayed"
    assert b"from a pipe" in received(shared.a, "stdin@a.test").content


@pytest.mark.parametrize(
    ("words", "code", "expected_text"),
    [
        (["nonsense"], USAGE, "nonsense"),
        (["queue", "retry"], USAGE, "--all"),
        (["queue", "list", "--older-than", "soon"], USAGE, "--older-than"),
        (["serve", "--role", "pickup"], USAGE, "--role"),
        (["trace", "0000000000000000"], DATA, "0000000000000000"),
        (["queue", "show", "0000000000000000"], DATA, "0000000000000000"),
        (["wait", "0000000000000000", "--timeout", "0.1"], TRY_LATER, "0000000000000000"),
        (["send", "--token", "wrong", "--to", "x@a.test", "--body", "x"], NO_PERMISSION, "401"),
        (["send", "--from", "a@b.test", "--to", "nobody@example.test", "--body", "x"], DATA, "550"),
        (["serve"], UNAVAILABLE, "in use by process"),
        (["queue", "hold", "--all", "--until", "yesterday"], USAGE, "found 'yesterday'"),
        (["import", ".", "--mailbox", "nobody@example.test"], DATA, "--create` makes it"),
    ],
)
def test_exit_codes(relay: RelayProcess, words: list[str], code: int, expected_text: str) -> None:
    config = ("--config", str(relay.client_config())) if words[0] == "send" else ()
    done = relay.cli(*words, *config)
    assert done.returncode == code, done.stderr
    assert expected_text in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_deferred_mail_is_listed_and_retried(remotes: Remotes, serve) -> None:
    mx = remotes.start("a.test", rcpt={"later@a.test": ["450 4.2.1 not now", "250 2.1.5 Ok"]})
    relay = serve(remotes, config={"delivery": {"retry": ["1h"]}})
    queue_id = relay.submit("alice@example.test", ["later@a.test"])
    relay.until_state(queue_id, "deferred")
    (entry,) = relay.cli_json("queue", "list")
    assert entry | {"due": "", "size": 0, "created": ""} == entry | {
        "id": queue_id,
        "sender": "alice@example.test",
        "state": "deferred",
        "attempts": 1,
        "due": "",
        "size": 0,
        "created": "",
    }
    (recipient,) = entry["recipients"]
    assert recipient["address"] == "later@a.test"
    assert (recipient["state"], recipient["status"]) == ("deferred", "4.2.1")
    assert "450 4.2.1 not now" in recipient["reply"]
    for condition in (["--sender", "nobody*"], ["--domain", "b.test"], ["--state", "queued"]):
        assert relay.cli_json("queue", "list", *condition) == []
    waited = relay.cli("wait", queue_id, "--timeout", "0.1")
    assert waited.returncode == TRY_LATER
    assert "deferred" in waited.stderr
    assert len(relay.cli_json("queue", "retry", "--all", "--dry-run")) == 1
    assert mx.envelopes == []
    assert len(relay.cli_json("queue", "retry", "--domain", "a.test")) == 1
    assert relay.cli("wait", queue_id, "--state", "relayed").returncode == OK
    received(mx, "later@a.test")


def test_without_a_daemon_commands_read_the_files(remotes: Remotes, serve) -> None:
    remotes.start("a.test", replies={"RCPT": "450 4.2.1 not now"})
    relay = serve(remotes, config={"delivery": {"retry": ["1h"]}})
    identity = relay.send_mail(to=["x@a.test"], subject="offline")
    relay.until_state(identity, "deferred")
    until("filed", lambda: not relay.pending_submissions())
    running = relay.cli_json("trace", identity)
    assert relay.stop() == OK
    assert relay.cli_json("trace", identity) == running
    assert [one["id"] for one in relay.cli_json("queue", "list")] == [running["id"]]
    assert len(relay.cli_json("queue", "retry", running["id"])) == 1
    assert relay.cli("wait", identity, "--timeout", "0.1").returncode == UNAVAILABLE
    assert relay.cli("send", "--token", "alice", "--to", "x@a.test").returncode != OK


def test_check_on_a_good_configuration(relay: RelayProcess) -> None:
    findings = relay.cli_json("check")
    verdicts = {one["check"]: one["verdict"] for one in findings}
    assert {"accounts", "policy", "state_dir", "mailboxes.root", "dns"} <= verdicts.keys()
    assert {"fault", "failed"}.isdisjoint(verdicts.values())
    assert any("plain" in one["text"] for one in findings if one["verdict"] == "warning")


def test_check_warns_on_stderr_and_succeeds(relay: RelayProcess) -> None:
    done = relay.cli("check")
    assert done.returncode == OK
    warnings = done.stderr.splitlines()
    assert warnings
    assert all(line.startswith(f"warning: {relay.folder}/") for line in warnings)
    assert "warning" not in done.stdout


def test_check_knows_the_ports_of_the_running_relay(remotes: Remotes, serve) -> None:
    relay = serve(remotes)
    config = str(relay.client_config())  # with the ports that it took
    before = sorted(relay.folder.rglob("*"))
    done = relay.cli("check", "--config", config)
    assert done.returncode == OK, done.stderr
    assert relay.ready["smtp"][0] in done.stdout
    assert sorted(relay.folder.rglob("*")) == before
    address = relay.smtp_address()
    assert relay.stop() == OK
    with socket.create_server(address):
        done = relay.cli("check", "--config", config)
    assert done.returncode == CONFIGURATION
    place = f"{config}:{line_of(config, 'listen', 2)}: smtp[0].listen: "
    assert f'{place}found "{address[0]}:{address[1]}", expected a free address' in (done.stderr)
    assert "relay check: 1 fault\n" in done.stderr


def line_of(file: str, key: str, turn: int) -> int:
    """The line in which `key` stands for the `turn`-th time."""
    lines = Path(file).read_text().splitlines()
    return [number for number, line in enumerate(lines, 1) if line.startswith(key)][turn - 1]


def test_policy_check_test_and_try(relay: RelayProcess) -> None:
    folder = relay.folder / "rules"
    folder.mkdir(exist_ok=True)
    rules = folder / "10-exe.toml"
    rules.write_text(
        '[[rule]]\nname = "no exe"\nwhen = { attachment_name = ["*.exe"] }\n'
        'then = [ { reject = "5.7.1 no" } ]\n[[test]]\nname = "t"\nfrom = "a@b.test"\n'
        'to = ["c@d.test"]\nattachments = ["a.exe"]\nexpect = { verdict = "reject" }\n'
    )
    assert relay.cli("policy", "check", str(folder)).returncode == OK
    assert relay.cli("policy", "test", str(folder)).returncode == OK
    rules.write_text(rules.read_text().replace('verdict = "reject"', 'verdict = "accept"'))
    failing = relay.cli("policy", "test", str(folder))
    assert failing.returncode == CONFIGURATION
    assert "10-exe.toml:5" in failing.stdout + failing.stderr
    message = relay.folder / "try.eml"
    message.write_text("Subject: x\n\nx\n")
    tried = relay.cli(
        "policy", "try", str(message), "--from", "a@b.test", "--to", "c@d.test", "--json"
    )
    assert tried.returncode == OK
    assert json.loads(tried.stdout)["verdict"] == "accept"


def test_no_login_of_a_url_is_shown(remotes: Remotes) -> None:
    """Wherever a next hop is refused: on stderr, in the API's answer, in the log, in faults of files."""
    url, said = "smtp://user:sesame@mx.test:25", []
    with remotes.relay() as relay:
        said.append(relay.cli("queue", "reroute", "--all", "--to", url).stderr)
        body = {"all": True, "to": url}
        said.append(
            relay.graph("POST", "/relay/v1/queue/reroute", body, token=OPERATOR).body.decode()
        )
        rule = f"[[rule]]\nname = 'r'\nthen = [{{ next_hop = '{url}' }}]\n"
        (relay.folder / "policies/99-login.toml").write_text(rule)
        said.append(relay.cli("policy", "check").stderr)
        relay.write_config(relay.config | {"route": [{"domain": "*", "next_hop": url}]})
        said.append(relay.cli("check").stderr)
        os.kill(relay.process.pid, signal.SIGHUP)
        until("refused", lambda: "route[0].next_hop" in relay.log)
        said.append(relay.log)
    assert all("smtp://…@mx.test:25" in one for one in said[:-1]), said
    assert [one for one in said if "sesame" in one or "user:" in one] == []
