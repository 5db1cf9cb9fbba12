"""Start, health, metrics and stop of a relay: configuration faults, SIGTERM, and `relay dev`."""

import asyncio
import json
import re
import shlex
import signal
import smtplib
import subprocess
from contextlib import closing
from functools import partial

import pytest

from tests.integration.conftest import SharedRelay
from tests.support import relay_starts
from tests.support.in_thread import in_threads
from tests.support.relay_config import changed, configuration
from tests.support.relay_process import RelayProcess, until
from tests.support.remotes import Remotes, received

GATE = True

METRICS = (
    "messages_accepted_total",
    "recipients_total",
    "queue_entries",
    "queue_oldest_seconds",
    "queue_unaccounted",
    "delivery_seconds",
    "attempts_total",
    "commit_seconds",
    "commit_batch_size",
    "connections",
    "pressure_level",
    "pickup_waiting",
    "reports_total",
    "policy_rule_total",
)


# -- how it is
def test_a_state_dir_that_a_start_makes_is_closed_to_others(serve) -> None:
    relay = serve(start=False)
    state = relay.folder / "state"
    state.rmdir()
    relay.start()
    assert f"{state.stat().st_mode:o}"[-3:] == "750"


def test_every_metric_is_exposed(shared: SharedRelay) -> None:
    identity = shared.relay.send_mail(to=["metric@a.test", "nobody@b.test", "bob@example.test"])
    shared.relay.until_final(identity)
    exposition = shared.relay.exposition()
    for name in METRICS:
        assert re.search(
            rf"^# TYPE relay_{name.removesuffix('_total')}(_total)? ", exposition, re.MULTILINE
        ), name
    metric = shared.relay.metric
    until("the report went", lambda: metric("relay_messages_accepted_total", via="report") == 1)
    assert metric("relay_messages_accepted_total", via="graph") == 1
    for outcome, count in (("relayed", 1), ("failed", 1), ("delivered", 2)):
        counted = {"outcome": outcome}
        until(outcome, lambda of=counted, n=count: metric("relay_recipients_total", **of) == n)
    assert metric("relay_delivery_seconds_count") >= 2
    assert metric("relay_commit_batch_size_count") >= 2
    until("all is accounted for", lambda: metric("relay_queue_unaccounted") == 0)
    for waiting in ("relay_queue_entries", "relay_pickup_waiting"):
        until("nothing waits", lambda name=waiting: metric(name) == 0)


def test_health_and_metrics_have_exactly_one_path(relay: RelayProcess) -> None:
    """A proxy that closes /metrics closes them."""
    assert relay.request("GET", "/metrics").status == 200
    for name in ("healthz", "readyz", "metrics"):
        for path in (
            f"/{name}/",
            f"//{name}",
            f"///{name}//",
            f"/{name}/?a=b",
            f"/%{ord(name[0]):02x}{name[1:]}",
        ):
            assert relay.request("GET", path).status == 404, path


# -- how it starts
def test_all_configuration_faults_are_listed_at_once(serve) -> None:
    relay = serve(start=False)
    bad = {"hostname": "not a name", "delivery": {"retyr": ["1m"], "port": 0, "tls": "maybe"}}
    relay.write_config(changed(configuration(None, 25), bad))
    lines = relay.config_file.read_text().splitlines()
    for verb in ("serve", "check"):
        done = relay.cli(verb)
        assert done.returncode == 78
        for key in ("hostname", "retyr", "port", "tls"):
            number = next(index for index, line in enumerate(lines, 1) if line.startswith(key))
            place = f"{relay.config_file}:{number}: "
            assert [line for line in done.stderr.splitlines() if line.startswith(place)], (
                done.stderr
            )
        assert "retry" in done.stderr, "no suggestion"
        assert "Traceback" not in done.stderr
    assert list((relay.folder / "state").iterdir()) == []


@pytest.mark.parametrize("what", ["accounts.toml", "10-a.toml:1"])
def test_a_fault_in_accounts_or_rules_prevents_the_start(what: str, serve) -> None:
    fails = '[[test]]\nname = "t"\nfrom = "a@b.test"\nto = ["c@d.test"]\nexpect = { verdict = "reject" }\n'
    policies = {} if what == "accounts.toml" else {"10-a.toml": fails}
    accounts = [] if policies else [{"address": "x@other.test", "token": "plain:x"}]
    relay = serve(accounts=accounts, policies=policies, start=False)
    relay.start(wait=False)
    assert relay.wait_end() == 78
    assert what in relay.log
    assert "Traceback" not in relay.log
    assert relay.cli("check").returncode == 78


def test_a_port_in_use_prevents_the_start(relay: RelayProcess, serve) -> None:
    taken = "{}:{}".format(*relay.http)
    second = serve(start=False, config={"http": {"listen": [taken]}})
    second.start(wait=False)
    assert second.wait_end() == 69
    assert taken in second.log
    assert "Traceback" not in second.log


def test_a_mail_store_in_use_prevents_the_start(relay: RelayProcess, serve) -> None:
    """With a state_dir of its own it would send the other's submissions a second time."""
    assert relay.process is not None
    second = serve(start=False, config={"mailboxes": {"root": str(relay.folder / "mail")}})
    second.start(wait=False)
    assert second.wait_end() == 69
    assert f"{relay.folder}/mail is in use by process {relay.process.pid}" in second.log


# -- how it stops
def test_sigterm_finishes_open_sessions_and_deliveries(remotes: Remotes, serve) -> None:
    gate = asyncio.Event()
    mx = remotes.start("a.test", gates={"DOT": gate})
    relay = serve(remotes)
    relay.submit("alice@example.test", ["x@a.test"])
    until("its content was received", lambda: mx.envelopes)
    with closing(relay.smtp()) as session:  # without QUIT: it may have its 421 by then
        session.ehlo()
        session.mail("alice@example.test")
        session.rcpt("bob@example.test")
        assert relay.process is not None
        relay.process.send_signal(signal.SIGTERM)
        until("it no longer listens", lambda: not listens(relay))
        assert session.data(b"Subject: late\r\n\r\nx\r\n")[0] == 250
    remotes.open_gate(gate)
    assert relay.wait_end() == 0
    assert relay.faults() == []
    relay.start()
    until("delivered", lambda: relay.subjects("bob") == ["late"])
    relay.until_final("x@a.test")
    received(mx, "x@a.test")
    assert [one["outcome"] for one in relay.journey("x@a.test")["recipients"][0]["attempts"]] == [
        "relayed"
    ]


def listens(relay: RelayProcess) -> bool:
    try:
        with relay.smtp():
            return True
    except OSError:
        return False


def test_sigterm_ends_stalled_deliveries_after_the_grace_period(remotes: Remotes, serve) -> None:
    mx = remotes.start("a.test", gates={"MAIL": asyncio.Event()})
    relay = serve(remotes, config={"delivery": {"shutdown_grace": "1s"}})
    identity = relay.send_mail(to=["x@a.test"])
    until("it is being delivered", lambda: mx.open)
    assert relay.stop() == 0  # the reply to MAIL may take longer
    assert not (relay.folder / "ready.json").exists()
    mx.gates = {}
    relay.start()
    relay.until_final(identity)
    received(mx, "x@a.test")


def test_sigterm_under_load_loses_no_message(remotes: Remotes, serve) -> None:
    mx = remotes.start("a.test")
    accepted: list[str] = []
    relay = serve(remotes)

    def submit(client: int) -> None:
        try:
            for number in range(10_000):
                address = f"x{client}-{number}@a.test"
                relay.submit("alice@example.test", [address])
                accepted.append(address)
        except (AssertionError, OSError):
            return

    with in_threads(partial(submit, client) for client in range(4)):
        until("40 messages are accepted", lambda: len(accepted) > 40)
        assert relay.stop() == 0
    relay.start()
    until("the queue is empty", lambda: not relay.queue())
    came = [address for one in mx.envelopes for address in one.addresses]
    assert set(accepted) <= set(came)
    assert len(came) == len(set(came)), "a clean stop delivers nothing twice"


def test_a_relay_that_was_started_without_standard_files_stops_as_others(serve) -> None:
    relay = serve(start=False)
    ready_file = relay.folder / "ready.json"
    command = shlex.join([*relay.start_command(), "--ready-file", str(ready_file)])
    words = ["/bin/sh", "-c", f"exec {command} <&- >&- 2>&-"]
    relay.process = subprocess.Popen(words, cwd=relay.folder, env=relay.environment)
    until("ready, or ended", lambda: ready_file.exists() or relay.process_ended)
    assert relay.stop() == 0


def test_a_ready_file_of_an_earlier_run_is_removed_first_and_the_own_one_at_the_end(dev) -> None:
    relay = dev("--exit-after", "1", start=False)
    ready_file = relay.folder / "early.json"
    ready_file.write_text('{"pid":1}')
    command = [*relay.start_command(), "--ready-file", str(ready_file)]
    process = relay_starts.start(command, cwd=relay.folder, env=relay.environment)
    until("the old file is gone", lambda: not ready_file.exists())
    until("it is ready", lambda: ready_file.exists() or process.poll() is not None)
    ready = json.loads(ready_file.read_text())
    assert ready["pid"] == process.pid
    host, port = ready["smtp"][0].split(":")
    with smtplib.SMTP(host, int(port)) as session:
        session.sendmail("a@b.test", ["c@d.test"], "Subject: x\n\nx")
    assert process.wait(30) == 0
    assert not ready_file.exists()


def test_a_ready_file_that_another_relay_has_written_stays(dev) -> None:
    relay = dev("--no-demo")
    ready_file = relay.folder / "ready.json"
    ready_file.write_text('{"pid":1,"http":[]}')
    assert relay.stop() == 0
    assert ready_file.read_text() == '{"pid":1,"http":[]}'
