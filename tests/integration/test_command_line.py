"""The command line against a running relay, and against its files: facts, JSON, exit codes."""

import os
import signal

import pytest

from relay.base.message.rest_id import rest_id
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
        "send",
        "--token",
        "alice",
        "--to",
        "sent@a.test",
        "--subject",
        "by hand",
        "--body",
        "x",
        "--attach",
        str(attachment),
        "--config",
        str(relay.client_config()),
    )
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
        (["serve", "--role", "pickup"], USAGE, "--role"),
        (["trace", "0000000000000000"], DATA, "0000000000000000"),
        (["queue", "show", "0000000000000000"], DATA, "0000000000000000"),
        (["wait", "0000000000000000", "--timeout", "0.1"], TRY_LATER, "0000000000000000"),
        (["send", "--token", "wrong", "--to", "x@a.test", "--body", "x"], NO_PERMISSION, "401"),
        (["send", "--from", "a@b.test", "--to", "nobody@example.test", "--body", "x"], DATA, "550"),
        (["serve"], UNAVAILABLE, "in use by process"),
    ],
)
def test_exit_codes(relay: RelayProcess, words: list[str], code: int, expected_text: str) -> None:
    config = ("--config", str(relay.client_config())) if words[0] == "send" else ()
    done = relay.cli(*words, *config)
    assert done.returncode == code, done.stderr
    assert expected_text in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_without_a_daemon_commands_read_the_files(remotes: Remotes, serve) -> None:
    remotes.start("a.test", replies={"RCPT": "450 4.2.1 not now"})
    relay = serve(remotes, config={"delivery": {"retry": ["1h"]}})
    identity = relay.send_mail(to=["x@a.test"], subject="offline")
    relay.until_state(identity, "deferred")
    until("filed", lambda: not relay.pending_submissions())
    running = relay.cli_json("trace", identity)
    assert relay.stop() == OK
    strict_id = rest_id(identity, "sentitems")
    assert [relay.cli_json("trace", key) for key in (identity, strict_id)] == [running, running]
    assert [one["id"] for one in relay.cli_json("log", "--message-id", strict_id)] == [
        running["id"]
    ]
    assert [one["id"] for one in relay.cli_json("queue", "list")] == [running["id"]]
    for words in (("queue", "retry", running["id"]), ("storage", "prune")):
        refused = relay.cli(*words)
        assert (refused.returncode, "no relay is running" in refused.stderr) == (UNAVAILABLE, True)
    assert relay.cli("wait", identity, "--timeout", "0.1").returncode == UNAVAILABLE
    assert relay.cli("send", "--token", "alice", "--to", "x@a.test").returncode != OK


def test_no_login_of_a_url_is_shown(serve) -> None:
    """Wherever a next hop is refused: on stderr, in the API's answer, in the log, in faults of files."""
    url, relay = "smtp://user:sesame@mx.test:25", serve()
    said = [relay.cli("queue", "reroute", "--all", "--to", url).stderr]
    body = {"all": True, "to": url}
    answer = relay.graph("POST", "/relay/v1/queue/reroute", body, token=OPERATOR)
    said.append(answer.body.decode())
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
