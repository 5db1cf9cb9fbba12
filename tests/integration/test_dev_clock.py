"""The clock of a development relay: days of retries in seconds, over a restart as well."""

import http.client
import json
import re
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from tests.support.dev_process import DevProcess
from tests.support.graph_client import Answer
from tests.support.long_tests import sampled
from tests.support.relay_config import OPERATOR
from tests.support.relay_process import until
from tests.support.tables import each_row

ALICE, BOB = "alice@example.test", "bob@example.test"
CLOCK = "/relay/v1/dev/clock"
DAY_S = 86400
RETRY_S = [5, 15, 60, 300, 900, 1800]  # then each hour


@pytest.fixture
def relay(dev) -> DevProcess:
    return dev("--no-demo")


def clock(relay: DevProcess) -> Any:
    return relay.graph("GET", CLOCK, token=OPERATOR).json()


def advanced(relay: DevProcess, seconds: Any, **headers: str) -> Answer:
    return relay.graph("POST", CLOCK, {"advance_s": seconds}, token=OPERATOR, headers=headers)


def submit(
    relay: DevProcess, recipient: str, *, sender: str = ALICE, notify: str = "FAILURE,DELAY"
) -> str:
    return relay.submit(sender, [recipient], rcpt_options=[f"NOTIFY={notify}"] if notify else [])


def submit_deferred(relay: DevProcess) -> str:
    """Mail for a host that defers each attempt."""
    queue_id = submit(relay, "someone+451@elsewhere.test")
    relay.until_state(queue_id, "deferred")
    return queue_id


def state(relay: DevProcess, queue_id: str) -> str:
    return str(relay.journey(queue_id)["state"])


def steps(relay: DevProcess, queue_id: str, name: str) -> list[tuple[datetime, dict[str, Any]]]:
    return [
        (datetime.fromisoformat(step["at"]), step["detail"])
        for step in relay.journey(queue_id)["steps"]
        if step["name"] == name
    ]


def attempts_of(relay: DevProcess, queue_id: str) -> list[datetime]:
    return [
        at
        for at, detail in steps(relay, queue_id, "delivery")
        if "attempt" in detail and detail["recipients"][0]["outcome"] == "deferred"
    ]


def check_waits(attempts: list[datetime]) -> None:
    """Compare the times of attempts with the retry list, as far as they go."""
    waits = [(after - before).total_seconds() for before, after in pairwise(attempts)]
    for number, wait_s in enumerate(waits):
        step_s = RETRY_S[number] if number < len(RETRY_S) else 3600
        assert 0.9 * step_s <= wait_s <= 1.1 * step_s + 5, (number, wait_s)


def test_two_days_of_retries_with_their_notice_and_report(relay: DevProcess) -> None:
    """Of mail that asks for all, of mail that asks for none, and of the null sender (RFC 3461 4.1)."""
    asking = [(ALICE, "FAILURE,DELAY"), (ALICE, "NEVER"), ("", "SUCCESS,FAILURE,DELAY")]
    sent = {
        pair: submit(relay, f"ann+451@elsewhere{number}.test", sender=pair[0], notify=pair[1])
        for number, pair in enumerate(asking)
    }
    queue_ids = list(sent.values())
    for queue_id in queue_ids:
        until("it is deferred", lambda one=queue_id: state(relay, one) == "deferred")
    began = attempts_of(relay, queue_ids[0])[0]
    before = clock(relay)
    now = relay.advance(2 * DAY_S + 60)
    assert clock(relay)["advanced_s"] == before["advanced_s"] + 2 * DAY_S + 60
    assert now >= datetime.fromisoformat(before["now"]) + timedelta(seconds=2 * DAY_S + 60)
    asked = {"DELAY": "delayed", "FAILURE": "failure"}
    for (sender, notify), queue_id in sent.items():  # without another wait: the advance settles
        journey = relay.journey(queue_id)
        assert journey["state"] == "expired"
        attempts = attempts_of(relay, queue_id)
        assert 50 <= len(attempts) <= 62
        check_waits(attempts)
        kinds = [asked[one] for one in asked if sender and one in notify.split(",")]
        reported = steps(relay, queue_id, "report")
        assert [detail["kind"] for _, detail in reported] == kinds, (sender, notify)
        reports = {detail["kind"]: at for at, detail in reported}
        if "delayed" in reports:
            assert 4 * 3600 - 5 <= (reports["delayed"] - began).total_seconds() <= 5.2 * 3600
        if "failure" in reports:
            assert abs((reports["failure"] - began).total_seconds() - 2 * DAY_S) < 30
    assert [one.startswith("Undeliver") for one in relay.inbox("alice")].count(True) == 1


def test_relay_send_at_is_by_the_clock_of_the_relay_and_the_time_zone_of_the_user(dev) -> None:
    india = ZoneInfo("Asia/Kolkata")
    relay = dev("--no-demo", TZ=india.key)
    words = ("send", "--token", "alice", "--to", BOB, "--body", "x", "--at")
    now = relay.advance(3 * DAY_S).astimezone(india)
    due = (now + timedelta(hours=2)).replace(second=0, microsecond=0)
    past = now - timedelta(minutes=2)
    for at, expected in (
        (f"{due:%H:%M}", due),
        (f"{past:%H:%M}", past.replace(second=0, microsecond=0) + timedelta(days=1)),
        (due.isoformat(), due),
        ("90m", now + timedelta(minutes=90)),
    ):
        journey = relay.journey(relay.cli(*words, at).stdout.strip())
        assert journey["state"] == "scheduled"
        (recipient,) = journey["recipients"]
        planned = datetime.fromisoformat(recipient["next_attempt"])
        assert abs((planned - expected).total_seconds()) < (60 if at == "90m" else 1)
    assert relay.inbox("bob") == []
    relay.advance(3 * 3600)
    assert len(relay.inbox("bob")) == 3
    for at in ("24:00", "soon", "2030-01-31T09:00:00", "2020-01-31T09:00:00Z", "0s", "999999999d"):
        refused = relay.cli(*words, at)
        assert (refused.returncode, refused.stdout) == (64, "")
        assert f'--at: found "{at}", expected a' in refused.stderr
    by_smtp = relay.cli("send", "--to", BOB, "--at", "15:00")
    assert by_smtp.returncode == 64
    assert "--at needs --token" in by_smtp.stderr


def test_slow_hosts_and_later_reports_take_the_time_of_the_clock(relay: DevProcess) -> None:
    slow = [submit(relay, "ann+slow20@slow.test") for _ in range(3)]
    later = submit(relay, "ann+later550@later.test")
    silent = submit(relay, "ann+timeout@silent.test")
    until("it is sent", lambda: state(relay, later) == "relayed")
    relay.advance(DAY_S)
    assert [state(relay, one) for one in slow] == ["relayed"] * 3
    assert state(relay, silent) == "queued", "the advance waited for a time-out of 30 s"
    assert len([one for one in relay.inbox("alice") if one.startswith("Undeliver")]) == 1
    relay.kill()  # a stop waits for the silent host


def application_token(relay: DevProcess) -> Any:
    form = b"grant_type=client_credentials&client_id=app&client_secret=x&scope=https://graph.microsoft.com/.default"
    urlencoded = {"Content-Type": "application/x-www-form-urlencoded"}
    return relay.request("POST", "/common/oauth2/v2.0/token", form, urlencoded).json()


def test_refusals_of_a_time_and_a_reset_name_the_advance(relay: DevProcess) -> None:
    soon = f"{datetime.now(UTC) + timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}"
    hook = {"changeType": "created", "notificationUrl": "http://127.0.0.1:9/"}
    hook |= {"resource": "me/messages", "expirationDateTime": soon}
    token = application_token(relay)["access_token"]
    assert relay.cli("reset").stdout == "deleted 0 messages\n"
    relay.advance(7200)
    texts = [
        relay.graph("GET", f"/users/{ALICE}/messages", token=token).message,
        relay.graph("POST", "/subscriptions", hook).message,
        relay.cli("send", "--token", "alice", "--to", BOB, "--body", "x", "--at", soon).stderr,
        relay.cli("queue", "hold", "--all", "--until", soon).stderr,
        relay.cli("reset").stdout,
    ]
    ahead = re.compile(r"; the relay's time is 20\d\d-[\dT:-]+Z, advanced by 2 h\b")
    assert [one for one in texts if not ahead.search(one)] == []


def test_a_relay_without_mail_names_its_address(relay: DevProcess) -> None:
    smtp = f"the relay has no mail yet; it takes mail by SMTP at {relay.ready['smtp'][0]}"
    for words, more, code in (
        (("trace", "last"), "", 65),
        (("show", "last"), "", 65),
        (("wait", "last", "--timeout", "0.1"), "; waiting 0.1 s", 75),
    ):
        empty = relay.cli(*words)
        assert f"relay {words[0]}: {smtp}{more}\n" in empty.stderr
        assert (empty.returncode, empty.stdout) == (code, "")
    assert "\n0 accepted, 0 delivered, 0 deferred, 0 failed\n" in relay.cli("stats").stdout


@pytest.mark.parametrize("number", sampled([signal.SIGKILL, signal.SIGTERM]))
def test_a_restart_continues_at_the_time_of_the_last_run(
    relay: DevProcess, number: signal.Signals
) -> None:
    queue_id = submit_deferred(relay)
    reached = relay.advance(1.5 * DAY_S)
    submit(relay, BOB)
    subjects = until(
        "it is delivered", lambda: [one for one in relay.inbox("bob") if one == "hello"]
    )
    relay.process.send_signal(number)
    relay.wait_end()
    relay.start()
    found = clock(relay)
    assert found["advanced_s"] == 1.5 * DAY_S
    assert reached <= datetime.fromisoformat(found["now"]) <= reached + timedelta(minutes=5)
    assert [one for one in relay.inbox("bob") if one == "hello"] == subjects
    submit(relay, BOB)
    relay.advance(0.5 * DAY_S + 60)
    assert state(relay, queue_id) == "expired"
    attempts = attempts_of(relay, queue_id)
    assert 50 <= len(attempts) <= 63
    check_waits([one for one in attempts if one < reached])
    check_waits_by_hour([one for one in attempts if one > reached])
    assert relay.inbox("bob").count("hello") == 2


def check_waits_by_hour(attempts: list[datetime]) -> None:
    waits = [(after - before).total_seconds() for before, after in pairwise(attempts)]
    assert len(waits) >= 9
    assert all(3200 <= wait_s <= 4000 for wait_s in waits), waits


def test_requests_are_served_one_after_the_other(relay: DevProcess) -> None:
    queue_id = submit_deferred(relay)
    with ThreadPoolExecutor(4) as threads:
        times = sorted(threads.map(relay.advance, [3600] * 4))
    assert all(after - before >= timedelta(hours=1) for before, after in pairwise(times))
    assert clock(relay)["advanced_s"] == 4 * 3600
    check_waits(attempts_of(relay, queue_id))


def test_a_client_that_disconnects_does_not_stop_the_advance(relay: DevProcess) -> None:
    queue_id = submit_deferred(relay)
    body = json.dumps({"advance_s": DAY_S / 2}).encode()
    head = f"POST {CLOCK} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer alice\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(relay.http) as client:
        client.sendall(head.encode() + body)
        until("it advances", lambda: clock(relay)["advanced_s"])
    until("it is at its end", lambda: clock(relay)["advanced_s"] == DAY_S / 2)
    assert len(attempts_of(relay, queue_id)) > 12
    assert relay.process.poll() is None


BAD = [
    ({"advance_s": 0}, "advance_s: found 0, expected a number of seconds over 0, at most 34"),
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


@each_row("body, text", BAD)
def test_bad_requests_name_what_was_found_and_expected(
    plain_dev: DevProcess, body: Any, text: str
) -> None:
    before = clock(plain_dev)["advanced_s"]
    answer = plain_dev.graph("POST", CLOCK, body, token=OPERATOR)
    assert answer.status == 400, answer.body
    assert text in answer.message
    assert clock(plain_dev)["advanced_s"] == before


def test_the_command_advances_the_clock(plain_dev: DevProcess) -> None:
    before = clock(plain_dev)["advanced_s"]
    shown = plain_dev.cli("clock", "show", "--json")
    assert json.loads(shown.stdout)["advanced_s"] == before
    done = plain_dev.cli("clock", "advance", "1.5h")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(f"Z  advanced by {before + 5400:.15g} seconds\n")
    assert clock(plain_dev)["advanced_s"] == before + 5400
    for duration, code, text in (
        ("0s", 64, 'DURATION: found "0s", expected more than 0'),
        ("soon", 64, 'DURATION: found "soon", expected a duration such as'),
        ("401d", 65, "advance_s: found 34646400, expected a number of seconds over 0"),
    ):
        failed = plain_dev.cli("clock", "advance", duration)
        assert (failed.returncode, text in failed.stderr) == (code, True), failed.stderr


def test_the_errors_of_the_server_itself_have_its_time(plain_dev: DevProcess) -> None:
    """Those before a request has a handler, such as that for a missing Host."""
    now = plain_dev.advance(3 * DAY_S)
    connection = http.client.HTTPConnection(*plain_dev.http, timeout=120)
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


def quiet(relay: DevProcess, **body: Any) -> Answer:
    return relay.graph("POST", "/relay/v1/quiet", body, token=OPERATOR)


def test_a_request_waits_until_nothing_is_in_flight(relay: DevProcess) -> None:
    submit(relay, "before@elsewhere.test")
    cursor = quiet(relay).json()["cursor"]
    names = [f"u{number}@elsewhere.test" for number in range(20)]
    for name in names:
        submit(relay, name)
    later = submit(relay, "someone+451@elsewhere.test")
    found = quiet(relay, timeout_s=30, after=cursor).json()
    states = {one["recipients"][0]["address"]: one["state"] for one in found["messages"]}
    assert states == {**dict.fromkeys(names, "captured"), "someone+451@elsewhere.test": "deferred"}
    assert (found["quiet"], [one["id"] for one in found["in_flight"]]) == (True, [later])
    assert quiet(relay, after=found["cursor"]).json()["messages"] == []
    # a host that never answers is in progress
    submit(relay, "someone+timeout@elsewhere.test")
    found = quiet(relay, timeout_s=0.1, after=found["cursor"]).json()
    assert (found["quiet"], len(found["messages"]), len(found["in_flight"])) == (False, 1, 2)


@each_row(
    "body, text",
    [
        ({"timeout_s": 301}, "Expected `float` <= 300.0 - at `$.timeout_s`"),
        ({"timeout_s": -1}, "Expected `float` >= 0.0"),
        ({"after": "x"}, "cursor"),
        ({"wait": 1}, "unknown field `wait`"),
    ],
)
def test_a_wait_for_quiet_that_is_not_understood(
    plain_dev: DevProcess, body: dict[str, Any], text: str
) -> None:
    answer = quiet(plain_dev, **body)
    assert (answer.status, text in answer.message) == (400, True), answer.body
