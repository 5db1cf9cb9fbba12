"""The command line asks the daemon if it runs, else reads the files."""

import json
import os
import select
import signal
import socketserver
import threading
from http.server import BaseHTTPRequestHandler
from typing import ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest
from click.testing import CliRunner
from msgspec import convert
from msgspec.structs import asdict

from relay.base.running_relay import ControlError, ControlUnavailableError
from relay.base.settings.reader import load
from relay.front_door.api.request_parameters import (
    QUEUE_PARAMETERS,
    CommandIssuer,
    read_queue_command,
    selector_of_query,
)
from relay.operation.app.state_dir import OwnerLock
from relay.operation.cli.root import cli
from relay.operation.commands.operator_client import OperatorClient
from relay.store.journeys.document import Journey
from relay.store.spool.queue_commands import CommandReport, Operation
from relay.store.spool.types import Selector
from tests.support.in_thread import Quiet, in_thread
from tests.support.journeys import json_of, made_journey
from tests.support.manual_clock import ManualClock


@pytest.fixture
def settings(tmp_path):
    file = tmp_path / "relay.toml"
    file.write_text('hostname = "relay.example.test"\nstate_dir = "s"\n')
    return load(file, {})


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def reading(settings, clock):
    return OperatorClient(settings, clock)


@pytest.fixture
def daemon(settings, clock):
    """Answers on the control socket with what `answers` has next; keeps what was asked."""

    class Handler(Quiet, BaseHTTPRequestHandler):
        asked: ClassVar[list] = []
        answers: ClassVar[list] = []

        def do_GET(self):
            url = urlsplit(self.path)
            query = {name: one for name, (one,) in parse_qs(url.query).items()}
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            self.asked.append((url.path, query or json.loads(body or "{}")))
            clock.advance(float(query.get("timeout", 0)))
            answer = self.answers.pop(0)
            if answer is KeyboardInterrupt:
                # Python may miss a signal that arrives just before a blocking call: send it again.
                gone: list[int] = []
                while not gone:
                    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
                    gone = select.select([self.connection], [], [], 1.0)[0]
                return
            status, value, *fields = answer
            self.send_response(status)
            for name, field in dict(*fields).items():
                self.send_header(name, field)
            self.end_headers()
            self.wfile.write(json.dumps(value).encode())

        def do_POST(self):
            self.do_GET()

        def address_string(self):
            return "unix"

    settings.run_dir.mkdir(parents=True)
    with in_thread(socketserver.UnixStreamServer(str(settings.control_socket), Handler)):
        yield Handler


def test_each_field_of_a_selector_is_an_option_a_parameter_and_a_field_of_a_body(daemon, tmp_path):
    issuer = CommandIssuer("olga", way_to=str, target_of=str, clock=ManualClock())
    values = {str: "held", tuple: ("<a,b@c>", "q"), type(None): 1234567.5, bool: True}
    words = {"ids": ["<a,b@c>", "q"], "older_than_s": ["--older-than", "1234567.5s"]}
    for name, default in asdict(Selector()).items():
        selector = Selector(**{name: values[type(default)]})
        option = [f"--{name.replace('_', '-')}", *(["held"] if default == "" else [])]
        for operation, answer in (("list", []), ("retry", CommandReport().as_json())):
            daemon.answers.append((200, answer))
            more = [*words.get(name, option), "--config", str(tmp_path / "relay.toml")]
            CliRunner().invoke(cli, ["queue", operation, *more])
        (_, query), (_, body) = daemon.asked[-2:]
        assert query.keys() <= set(QUEUE_PARAMETERS)
        assert selector_of_query(query) == selector, name
        command, _ = read_queue_command(Operation.RETRY, json.dumps(body).encode(), issuer)
        assert command.selector == selector, name


def test_an_interrupted_queue_command_has_an_unknown_result(reading, daemon):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    daemon.answers.append(KeyboardInterrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            reading.change("hold", Selector(all=True))
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_daemon_that_does_not_answer_is_an_error_and_files_stay_unchanged(reading, settings):
    settings.run_dir.mkdir(parents=True)
    spool = settings.state_dir / "spool.sqlite"
    spool.touch()
    owner = OwnerLock(settings.run_dir)
    owner.take()
    reported = (
        f"no relay is running: .* but {settings.state_dir} is in use by process {os.getpid()}"
    )
    with pytest.raises(ControlUnavailableError, match=reported):
        reading.journey("last")
    assert spool.read_bytes() == b""
    owner.give_back()


UNKNOWN = (404, {"error": {"code": "ErrorItemNotFound", "message": "none"}})


def test_an_unknown_message_is_none_and_an_error_raises(reading, daemon):
    daemon.answers += [
        UNKNOWN,
        (400, {"error": {"code": "BadRequest", "message": "no such state"}}),
    ]
    assert reading.journey("x") is None
    with pytest.raises(ControlError, match="no such state"):
        reading.journey("x")


WAITING = json_of(
    made_journey(id="q1", recipients=[{"address": "b@x.test", "state": "queued"}], reached=False)
)


def test_a_long_wait_is_several_short_ones(reading, daemon):
    waiting, done = (WAITING | {"reached": reached} for reached in (False, True))
    daemon.answers += [UNKNOWN, (200, waiting), (200, done)]
    assert reading.wait("q1", state="final", timeout_s=1000) == convert(done, Journey)
    assert [float(query["timeout"]) for _, query in daemon.asked] == [1, 1, 1]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [(UNKNOWN, None), ((200, WAITING), convert(WAITING, Journey))],
    ids=["unknown", "not there yet"],
)
def test_a_wait_ends_at_its_timeout(reading, daemon, answer, expected):
    daemon.answers += [answer, answer]
    assert reading.wait("q1", state="final", timeout_s=1.25) == expected
    assert [float(query["timeout"]) for _, query in daemon.asked] == [1, 0.25]
