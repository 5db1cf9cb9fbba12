"""Scenarios of a development relay: by option, by request, in delivery and at the front door."""

from typing import Any

import httpx
import pytest

from relay.development.internet.scenario_file import SCENARIO_BYTES_MAX
from tests.support.dev_process import DevProcess, run_dev
from tests.support.graph_client import Answer, message
from tests.support.tables import each_row

INTERNET = "/relay/v1/dev/internet"
TOML = {"Content-Type": "application/toml"}
JSON = {"Accept": "application/json"}
SCENARIO = """\
# mine
[[domain]]
name = "shop.test"
[[domain.reply]]
verb = "RCPT"
recipient = "x"
reply = "550 5.1.1 gone"
times = 5
"""


@pytest.fixture
def relay(plain_dev: DevProcess) -> DevProcess:
    """The module's, without a scenario."""
    assert put(plain_dev, "").status == 200
    return plain_dev


def put(relay: DevProcess, scenario: Any, **fields: str) -> Answer:
    body = scenario.encode() if isinstance(scenario, str) else scenario
    return relay.request("PUT", INTERNET, body, {**TOML, **fields})


def shown(relay: DevProcess, **fields: str) -> Answer:
    return relay.request("GET", INTERNET, headers=fields)


def send_to(relay: DevProcess, *to: str, **fields: str) -> Answer:
    return relay.graph("POST", "/me/sendMail", {"message": message(to=to)}, headers=fields)


def recipients(relay: DevProcess, answer: Answer) -> dict[str, tuple[str, str]]:
    """State and reply by recipient, when the message has reached its end."""
    assert answer.status == 202, answer.body
    key = answer.headers["x-relay-message-id"]
    journey = relay.until_final(key)
    return {one["address"]: (one["state"], one["reply"]) for one in journey["recipients"]}


def test_a_scenario_is_shown_and_replaced(relay: DevProcess) -> None:
    empty = shown(relay)
    assert (empty.status, empty.body) == (200, b"")
    assert empty.headers["content-type"] == "application/toml; charset=utf-8"
    made = put(relay, SCENARIO)
    assert made.body.decode() == SCENARIO
    found = recipients(relay, send_to(relay, "x@shop.test", "y@shop.test"))
    assert found["x@shop.test"] == ("failed", "550 5.1.1 gone")
    assert found["y@shop.test"][0] == "relayed"
    used = [{"entry": "shop.test: RCPT x", "used": 1, "left": 4}]
    assert shown(relay, **JSON).json() == {"toml": SCENARIO, "used": used}
    assert put(relay, SCENARIO).body == made.body
    assert shown(relay, **JSON).json()["used"] == [used[0] | {"used": 0, "left": 5}]
    control = httpx.HTTPTransport(uds=str(relay.folder / "state/run/control.sock"))
    with httpx.Client(transport=control, base_url="http://localhost") as client:
        assert client.get(INTERNET).text == made.body.decode()
    assert put(relay, "").body == b""


def test_a_scenario_is_replaced_by_json(relay: DevProcess) -> None:
    reply = {"verb": "RCPT", "reply": "550 5.1.1 no"}
    table = {"domain": [{"name": "shop.test", "reply": [reply]}]}
    answer = relay.graph("PUT", INTERNET, table)
    assert answer.status == 200, answer.body
    found = recipients(relay, send_to(relay, "x@shop.test"))
    assert found["x@shop.test"] == ("failed", "550 5.1.1 no")


FAULTY = [
    (
        b"[[domain]]\nnam = 1\n",
        "application/toml",
        400,
        "scenario:2: domain[0].nam: found an unknown key",
    ),
    (b"[[domain]]\nnam = 1\n", "application/toml", 400, '(did you mean "name"?)'),
    (b"a = \n", "application/toml", 400, "scenario:1: a: found no value of TOML"),
    (b"# \xff\n", "application/toml", 400, "found the byte 0xff in line 1, expected UTF-8"),
    (b"[[graph]]\n" * 30, "application/toml", 400, "And 10 more."),
    (
        b'{"domain": 1}',
        "application/json; charset=utf-8",
        400,
        "scenario: domain: found 1, expected [[domain]]",
    ),
    (b"[]", "application/json", 400, "The body: "),
    (b"{", "application/json", 400, "The body: "),
    (b"", "application/json", 400, "The body: "),
    (b"#" * (SCENARIO_BYTES_MAX + 1), "application/toml", 413, "262144 bytes"),
    (
        b"",
        "text/plain",
        415,
        "Content-Type: found 'text/plain', expected application/toml or application/json.",
    ),
    (b"", "application/x-www-form-urlencoded", 415, "Content-Type"),
    (b"", "", 415, "Content-Type: found ''"),
]


@each_row("content, media_type, status, expected", FAULTY)
def test_a_faulty_scenario_changes_nothing(
    plain_dev: DevProcess, content: bytes, media_type: str, status: int, expected: str
) -> None:
    before = shown(plain_dev).body
    answer = put(plain_dev, content, **{"Content-Type": media_type})
    assert (answer.status, expected in answer.message) == (status, True), answer.body
    assert answer.headers["request-id"]
    assert shown(plain_dev).body == before


def test_who_may_replace_a_scenario(relay: DevProcess) -> None:
    assert put(relay, (b"#" * 65_536 for _ in range(5))).status == 413
    for origin in ("http://evil.test", "https://127.0.0.1.evil.test", "null"):
        assert (shown(relay, Origin=origin).status, put(relay, "", Origin=origin).status) == (
            403,
            403,
        )
    assert put(relay, "", Origin=relay.url).status == 200
    other = relay.request("POST", INTERNET, b"", TOML)
    assert (other.status, other.headers["allow"]) == (405, "GET, PUT")


def test_scenarios_given_at_the_start(dev, tmp_path) -> None:
    (tmp_path / "mine.toml").write_text(SCENARIO)
    relay = dev("--no-demo", "--scenario", "gmail:5.1.1", "--scenario", f"{tmp_path}/mine.toml")
    found = recipients(relay, send_to(relay, "anyone@gmail.com", "x@shop.test"))
    assert found["x@shop.test"] == ("failed", "550 5.1.1 gone")
    state, reply = found["anyone@gmail.com"]
    assert (state, reply[:9]) == ("failed", "550 5.1.1")
    assert "The email account that you tried to reach does not exist." in reply


def test_the_command_ends_with_78_and_each_fault(short_path) -> None:
    (short_path / "mine.toml").write_text('[[domain]]\nname = "a.test"\ntls = "off"\nx = 1\n')
    words = ("--scenario", "gmial", "--scenario", "./mine.toml")
    for faulty in (words[2:], words):
        done = run_dev(short_path, "--once", *faulty)
        assert (done.returncode, done.stdout) == (78, "")
        assert "Traceback" not in done.stderr
        if faulty is words:
            assert "found no scenario of this name" in done.stderr
        else:
            tls = 'mine.toml:3: domain[0].tls: found "off", expected one of offered, required'
            assert tls in done.stderr
            assert "mine.toml:4: domain[0].x: found an unknown key" in done.stderr


def test_faults_of_the_front_door(relay: DevProcess) -> None:
    faults = """
[[graph]]
path = "*/sendMail"
status = 429
retry_after = 1
times = 1
[[graph]]
path = "*/sendMail"
account = "alice@*"
status = 504
times = 1
"""
    assert put(relay, faults).status == 200
    first = send_to(relay, "bob@example.test")
    assert (first.status, first.headers["retry-after"]) == (429, "1")
    assert send_to(relay, "bob@example.test").status == 504
    assert relay.graph("GET", "/me/messages").status == 200
    # what SDKs do after a 504: the message is not sent a second time
    third = send_to(relay, "bob@example.test", **{"retry-attempt": "1"})
    assert recipients(relay, third)["bob@example.test"][0] == "delivered"
    assert len(relay.inbox("bob")) == 1
