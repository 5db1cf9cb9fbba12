"""The clock of a development relay: days of retries in seconds, over a restart as well."""

import http.client
import json
import os
import signal
import smtplib
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from relay.development.verbs.dev_options import PORTS
from tests.support import relay_starts
from tests.support.graph_client import message
from tests.support.long_tests import sampled
from tests.support.relay_process import ROOT, until

ALICE, BOB = "alice@example.test", "bob@example.test"
CLOCK = "/relay/v1/dev/clock"
DAY_S = 86400
RETRY_S = [5, 15, 60, 300, 900, 1800]  # then each hour
_WAIT_S = 60.0


class DevelopmentProcess:
    """`relay dev --dir`; it can be started again on its directory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.directory = folder / "dev"
        self.ready: dict[str, Any] = {}

    def start(self) -> "DevelopmentProcess":
        file = self._folder / "ready.json"
        file.unlink(missing_ok=True)
        ports = [f"--{name}=localhost:0" for name in PORTS]
        command = [
            *relay_starts.RELAY, "dev", "--dir", str(self.directory), *ports,
            "--ready-file", str(file),
        ]  # fmt: skip
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self._folder),
            "PYTHONPATH": str(ROOT),
        }
        self.process = relay_starts.start(command, cwd=self._folder, env=environment)
        until("it is ready", lambda: file.exists() or self.process.poll() is not None)
        self.ready = json.loads(file.read_text())
        return self

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(20)

    def connection(self, *, timeout_s: float = _WAIT_S) -> http.client.HTTPConnection:
        host, _, port = self.ready["http"][0].rpartition(":")
        return http.client.HTTPConnection(host.strip("[]"), int(port), timeout=timeout_s)

    def call(
        self, method: str, path: str, body: Any = None, *, token: str = "", **headers: str
    ) -> tuple[int, Any]:
        connection = self.connection()
        try:
            sent = {"Authorization": f"Bearer {token or self.ready['token']}"} | headers
            octets = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, path, octets, sent | {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
            return answer.status, json.loads(text) if text else None
        finally:
            connection.close()

    def get(self, path: str, *, token: str = "") -> Any:
        status, found = self.call("GET", path, token=token)
        assert status == 200, (status, found)
        return found

    def advance(self, seconds: float) -> datetime:
        status, found = self.call("POST", CLOCK, {"advance_s": seconds})
        assert status == 200, found
        return datetime.fromisoformat(found["now"])

    def submit(self, *recipients: str, sender: str = ALICE, notify: str = "FAILURE,DELAY") -> str:
        host, _, port = self.ready["smtp"][0].rpartition(":")
        with smtplib.SMTP(host.strip("[]"), int(port), "client.test", _WAIT_S) as session:
            session.ehlo()
            session.mail(sender)
            options = [f"NOTIFY={notify}"] if notify else []
            for recipient in recipients:
                assert session.rcpt(recipient, options)[0] == 250
            code, reply = session.data(b"Subject: hello\r\n\r\nHello.\r\n")
        assert code == 250, reply
        return reply.decode().rpartition(" ")[2]

    def submit_deferred(self, domain: str) -> str:
        """Mail for a host that defers each attempt."""
        queue_id = self.submit(f"someone+451@{domain}")
        until("it is deferred", lambda: self.journey(queue_id)["state"] == "deferred")
        return queue_id

    def cli(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [*relay_starts.RELAY, *words, "--config", f"{self.directory}/relay.toml"]
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
        return relay_starts.run(command, cwd=self._folder, env=environment, timeout_s=_WAIT_S)

    def journey(self, key: str) -> dict[str, Any]:
        return dict(self.get(f"/relay/v1/messages/{key}"))

    def attempts(self, queue_id: str) -> list[datetime]:
        return [
            at
            for at, detail in self.steps(queue_id, "delivery")
            if "attempt" in detail and detail["recipients"][0]["outcome"] == "deferred"
        ]

    def steps(self, queue_id: str, name: str) -> list[tuple[datetime, dict[str, Any]]]:
        return [
            (datetime.fromisoformat(step["at"]), step["detail"])
            for step in self.journey(queue_id)["steps"]
            if step["name"] == name
        ]

    def subjects(self, token: str = "alice", folder: str = "inbox") -> list[str]:
        found = self.get(f"/v1.0/me/mailFolders/{folder}/messages?$top=500", token=token)
        return [one["subject"] for one in found["value"]]


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[DevelopmentProcess]:
    relay = DevelopmentProcess(tmp_path)
    try:
        yield relay.start()
    finally:
        relay.end()


def check_waits(attempts: list[datetime]) -> None:
    """Compare the times of attempts with the retry list, as far as they go."""
    waits = [(after - before).total_seconds() for before, after in pairwise(attempts)]
    for number, wait_s in enumerate(waits):
        step_s = RETRY_S[number] if number < len(RETRY_S) else 3600
        assert 0.9 * step_s <= wait_s <= 1.1 * step_s + 5, (number, wait_s)


def test_two_days_of_retries_with_their_notice_and_report(dev: DevelopmentProcess) -> None:
    """Among them mail with each NOTIFY (RFC 3461 4.1), of somebody and of the null sender."""
    of_alice = ("FAILURE,DELAY", "", "NEVER", "SUCCESS", "FAILURE", "DELAY")
    asking = [(ALICE, notify) for notify in of_alice] + [("", "SUCCESS,FAILURE,DELAY")]
    sent = {
        pair: dev.submit(f"ann+451@elsewhere{number}.test", sender=pair[0], notify=pair[1])
        for number, pair in enumerate(asking)
    }
    queue_ids = list(sent.values())
    for queue_id in queue_ids:
        until("it is deferred", lambda one=queue_id: dev.journey(one)["state"] == "deferred")
    began = dev.attempts(queue_ids[0])[0]
    before = dev.get(CLOCK)
    now = dev.advance(2 * DAY_S + 60)
    assert dev.get(CLOCK)["advanced_s"] == before["advanced_s"] + 2 * DAY_S + 60
    assert now >= datetime.fromisoformat(before["now"]) + timedelta(seconds=2 * DAY_S + 60)
    asked = {"DELAY": "delayed", "FAILURE": "failure"}
    for (sender, notify), queue_id in sent.items():  # without another wait: the advance settles
        journey = dev.journey(queue_id)
        assert journey["state"] == "expired"
        attempts = dev.attempts(queue_id)
        assert 50 <= len(attempts) <= 62
        check_waits(attempts)
        kinds = [asked[one] for one in asked if sender and (not notify or one in notify.split(","))]
        steps = dev.steps(queue_id, "report")
        assert [detail["kind"] for _, detail in steps] == kinds, (sender, notify)
        reports = {detail["kind"]: at for at, detail in steps}
        if "delayed" in reports:
            assert 4 * 3600 - 5 <= (reports["delayed"] - began).total_seconds() <= 5.2 * 3600
        if "failure" in reports:
            assert abs((reports["failure"] - began).total_seconds() - 2 * DAY_S) < 30
    assert len([one for one in dev.subjects() if one.startswith("Undeliver")]) == 3, dev.subjects()


def test_mail_that_is_sent_at_a_later_time(dev: DevelopmentProcess) -> None:
    now = datetime.fromisoformat(dev.get(CLOCK)["now"])
    draft = message(to=[BOB], subject="tomorrow")
    draft["singleValueExtendedProperties"] = [
        {
            "id": "SystemTime 0x3FEF",
            "value": (now + timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
    ]
    assert dev.call("POST", "/v1.0/me/sendMail", {"message": draft}, token="alice")[0] == 202
    dev.advance(DAY_S - 60)
    assert "tomorrow" not in dev.subjects("bob")
    dev.advance(120)
    assert "tomorrow" in dev.subjects("bob")
    assert "tomorrow" in dev.subjects("alice", "sentitems")


def test_slow_hosts_and_later_reports_take_the_time_of_the_clock(dev: DevelopmentProcess) -> None:
    slow = [dev.submit("ann+slow20@slow.test") for _ in range(3)]
    later = dev.submit("ann+later550@later.test")
    silent = dev.submit("ann+timeout@silent.test")
    until("it is sent", lambda: dev.journey(later)["state"] == "relayed")
    dev.advance(DAY_S)
    assert [dev.journey(one)["state"] for one in slow] == ["relayed"] * 3
    assert dev.journey(silent)["state"] == "queued", "the advance waited for a time-out of 30 s"
    assert len([one for one in dev.subjects() if one.startswith("Undeliver")]) == 1


def test_tokens_expire(dev: DevelopmentProcess) -> None:
    form = b"grant_type=client_credentials&client_id=app&client_secret=x&scope=https://graph.microsoft.com/.default"
    connection = dev.connection()
    connection.request(
        "POST", "/common/oauth2/v2.0/token", form,
        {"Content-Type": "application/x-www-form-urlencoded"},
    )  # fmt: skip
    answer = json.loads(connection.getresponse().read())
    connection.close()
    path = f"/v1.0/users/{ALICE}/messages"
    assert dev.call("GET", path, token=answer["access_token"])[0] == 200
    dev.advance(answer["expires_in"] - 60)
    assert dev.call("GET", path, token=answer["access_token"])[0] == 200
    dev.advance(120)
    assert dev.call("GET", path, token=answer["access_token"])[0] == 401


@pytest.mark.parametrize("number", sampled([signal.SIGKILL, signal.SIGTERM]))
def test_a_restart_continues_at_the_time_of_the_last_run(
    dev: DevelopmentProcess, number: signal.Signals
) -> None:
    queue_id = dev.submit_deferred("elsewhere.test")
    reached = dev.advance(1.5 * DAY_S)
    dev.submit(BOB)
    subjects = until(
        "it is delivered", lambda: [one for one in dev.subjects("bob") if one == "hello"]
    )
    dev.end(number)
    dev.start()
    found = dev.get(CLOCK)
    assert found["advanced_s"] == 1.5 * DAY_S
    assert reached <= datetime.fromisoformat(found["now"]) <= reached + timedelta(minutes=5)
    assert [one for one in dev.subjects("bob") if one == "hello"] == subjects
    dev.submit(BOB)
    dev.advance(0.5 * DAY_S + 60)
    assert dev.journey(queue_id)["state"] == "expired"
    attempts = dev.attempts(queue_id)
    assert 50 <= len(attempts) <= 63
    check_waits([one for one in attempts if one < reached])
    check_waits_by_hour([one for one in attempts if one > reached])
    assert dev.subjects("bob").count("hello") == 2


def check_waits_by_hour(attempts: list[datetime]) -> None:
    waits = [(after - before).total_seconds() for before, after in pairwise(attempts)]
    assert len(waits) >= 9
    assert all(3200 <= wait_s <= 4000 for wait_s in waits), waits


def test_requests_are_served_one_after_the_other(dev: DevelopmentProcess) -> None:
    queue_id = dev.submit_deferred("elsewhere.test")
    with ThreadPoolExecutor(4) as threads:
        times = sorted(threads.map(dev.advance, [3600] * 4))
    assert all(after - before >= timedelta(hours=1) for before, after in pairwise(times))
    assert dev.get(CLOCK)["advanced_s"] == 4 * 3600
    check_waits(dev.attempts(queue_id))


def test_a_client_that_disconnects_does_not_stop_the_advance(dev: DevelopmentProcess) -> None:
    queue_id = dev.submit_deferred("elsewhere.test")
    host, _, port = dev.ready["http"][0].rpartition(":")
    body = json.dumps({"advance_s": 3 * DAY_S}).encode()
    head = f"POST {CLOCK} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer alice\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((host.strip("[]"), int(port))) as client:
        client.sendall(head.encode() + body)
        until("it advances", lambda: dev.get(CLOCK)["advanced_s"])
    until("it is at its end", lambda: dev.get(CLOCK)["advanced_s"] == 3 * DAY_S, timeout_s=_WAIT_S)
    assert dev.journey(queue_id)["state"] == "expired"
    assert dev.process.poll() is None


BAD = [
    (
        {"advance_s": 0},
        "advance_s: found 0, expected a number of seconds over 0, at most 345",
    ),
    ({"advance_s": -1}, "found -1"),
    ({"advance_s": 400 * DAY_S + 1}, "found 34560001"),
    ({"advance_s": "1d"}, "Expected `float`, got `str` - at `$.advance_s`"),
    ({"advance_s": True}, "Expected `float`, got `bool`"),
    ({"advance_s": None}, "Expected `float`, got `null`"),
    ({}, "missing required field `advance_s`"),
    ({"advance_s": 1, "to": 2}, "unknown field `to`"),
    ([], "Expected `object`, got `array`"),
    (b"{", "truncated"),
    (b'{"advance_s": NaN}', "malformed"),
    (b'{"advance_s": 1e999}', ""),
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevelopmentProcess]:
    relay = DevelopmentProcess(tmp_path_factory.mktemp("relay"))
    try:
        yield relay.start()
    finally:
        relay.end()


@pytest.mark.parametrize(("body", "text"), BAD)
def test_bad_requests_name_what_was_found_and_expected(
    shared: DevelopmentProcess, body: Any, text: str
) -> None:
    before = shared.get(CLOCK)["advanced_s"]
    status, found = shared.call("POST", CLOCK, body)
    assert status == 400, found
    assert text in found["error"]["message"]
    assert shared.get(CLOCK)["advanced_s"] == before


def test_pages_of_other_sites_may_not_advance_it(shared: DevelopmentProcess) -> None:
    before = shared.get(CLOCK)["advanced_s"]
    for origin in ("https://evil.test", "null", "http://localhost.evil.test"):
        status, found = shared.call("POST", CLOCK, {"advance_s": 1}, Origin=origin)
        assert (status, found["error"]["code"]) == (403, "ErrorAccessDenied")
    assert shared.call("POST", CLOCK, {"advance_s": 0}, Origin="http://localhost:3000")[0] == 400
    assert shared.call("PUT", CLOCK, {"advance_s": 1})[0] == 405
    assert shared.get(CLOCK, token="alice")["advanced_s"] == before


def test_the_command_advances_the_clock(shared: DevelopmentProcess) -> None:
    before = shared.get(CLOCK)["advanced_s"]
    shown = shared.cli("clock", "show", "--json")
    assert json.loads(shown.stdout)["advanced_s"] == before
    done = shared.cli("clock", "advance", "1.5h")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(f"Z  advanced by {before + 5400:.15g} seconds\n")
    assert shared.get(CLOCK)["advanced_s"] == before + 5400
    for duration, code, text in (
        ("0s", 64, 'DURATION: found "0s", expected more than 0'),
        ("soon", 64, 'DURATION: found "soon", expected a duration such as'),
        ("401d", 65, "advance_s: found 34646400, expected a number of seconds over 0"),
    ):
        failed = shared.cli("clock", "advance", duration)
        assert (failed.returncode, text in failed.stderr) == (code, True), failed.stderr


def test_the_errors_of_the_server_itself_have_its_time(shared: DevelopmentProcess) -> None:
    """Those before a request has a handler, such as that for a missing Host."""
    now = shared.advance(3 * DAY_S)
    connection = shared.connection()
    try:
        connection.putrequest("GET", "/healthz", skip_host=True)
        connection.endheaders()
        answer = connection.getresponse()
        error = json.loads(answer.read())["error"]
    finally:
        connection.close()
    assert answer.status == 400
    assert parsedate_to_datetime(answer.headers["date"]) >= now.replace(microsecond=0)
    shown = datetime.fromisoformat(error["innerError"]["date"] + "+00:00")
    assert shown >= now.replace(microsecond=0)


def test_a_service_has_no_such_path(serve) -> None:
    relay = serve()
    for method in ("GET", "POST"):
        answer = relay.graph(method, CLOCK, {"advance_s": 1} if method == "POST" else None)
        assert answer.status == 404
    shown = relay.cli("clock", "show")
    assert (shown.returncode, "the relay is a service" in shown.stderr) == (69, True)
