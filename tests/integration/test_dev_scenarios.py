"""Scenarios of a development relay: by option, by request, in delivery and at the front door."""

import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from relay.base.settings.document import SettingsError
from relay.base.socket_address import Address
from relay.development.internet.scenario_file import SCENARIO_BYTES_MAX
from relay.development.options import DevelopmentOptions
from relay.development.relay import DevelopmentRelay
from relay.operation.app.development_folder import open_folder
from tests.support import relay_starts
from tests.support.graph_client import message
from tests.support.relay_process import ROOT

INTERNET = "/relay/v1/dev/internet"
TOML = {"content-type": "application/toml"}
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
LOCAL = Address("127.0.0.1", 0)


class Client(httpx.AsyncClient):
    async def send_to(self, *recipients: str, **more: dict[str, str]) -> httpx.Response:
        content = {"message": message(to=recipients)}
        return await self.post("/v1.0/me/sendMail", json=content, **more)

    async def recipients(self, answer: httpx.Response) -> dict[str, tuple[str, str]]:
        """State and reply by recipient, when the message has reached its end."""
        assert answer.status_code == 202, answer.text
        path = f"/relay/v1/messages/{answer.headers['x-relay-message-id']}/wait"
        found = await self.get(path, params={"state": "final", "timeout": "20"})
        assert found.status_code == 200, found.text
        return {one["address"]: (one["state"], one["reply"]) for one in found.json()["recipients"]}

    async def now(self, answer: httpx.Response) -> dict[str, tuple[str, str]]:
        """State and reply by recipient."""
        found = await self.get(f"/relay/v1/messages/{answer.headers['x-relay-message-id']}")
        return {one["address"]: (one["state"], one["reply"]) for one in found.json()["recipients"]}

    async def advance(self, seconds: float) -> None:
        answer = await self.post("/relay/v1/dev/clock", json={"advance_s": seconds})
        assert answer.status_code == 200, answer.text


@pytest.fixture
def running(short_path: Path) -> Callable[..., object]:
    @asynccontextmanager
    async def run(*scenarios: str) -> AsyncIterator[Client]:
        options = DevelopmentOptions(http=LOCAL, https=LOCAL, smtp=LOCAL, scenarios=scenarios)
        relay = DevelopmentRelay(open_folder(short_path / "dev"), options)
        try:
            await relay.start()
            url = f"http://{relay.addresses.http}"
            headers = {"authorization": "Bearer alice"}
            async with Client(base_url=url, headers=headers, trust_env=False, timeout=30) as client:
                yield client
        finally:
            await relay.stop()

    return run


async def test_a_scenario_is_shown_and_replaced(running):
    async with running() as client:
        empty = await client.get(INTERNET)
        assert (empty.status_code, empty.text) == (200, "")
        assert empty.headers["content-type"] == "application/toml; charset=utf-8"

        put = await client.put(INTERNET, content=SCENARIO, headers=TOML)
        assert put.status_code == 200
        assert put.text == SCENARIO + "\n# used: 0, left: 5: 'shop.test: RCPT x'\n"

        answer = await client.send_to("x@shop.test", "y@shop.test")
        found = await client.recipients(answer)
        assert found["x@shop.test"] == ("failed", "550 5.1.1 gone")
        assert found["y@shop.test"][0] == "relayed"

        shown = await client.get(INTERNET, headers={"accept": "application/json"})
        assert shown.json() == {
            "toml": SCENARIO,
            "used": [{"entry": "shop.test: RCPT x", "used": 1, "left": 4}],
        }
        text = (await client.get(INTERNET)).text
        assert text == SCENARIO + "\n# used: 1, left: 4: 'shop.test: RCPT x'\n"
        again = await client.put(INTERNET, content=text, headers=TOML)
        assert (again.status_code, again.text) == (200, put.text)  # counted from the beginning

        removed = await client.put(INTERNET, content="", headers=TOML)
        assert (removed.status_code, removed.text) == (200, "")


async def test_a_scenario_is_replaced_by_json(running):
    table = {
        "domain": [{"name": "shop.test", "reply": [{"verb": "RCPT", "reply": "550 5.1.1 no"}]}]
    }
    async with running("gmail") as client:
        assert (await client.put(INTERNET, json=table)).status_code == 200
        answer = await client.send_to("x@shop.test")
        assert (await client.recipients(answer))["x@shop.test"] == ("failed", "550 5.1.1 no")


FAULTY = [
    (b"[[domain]]\nnam = 1\n", "application/toml", 400, "scenario:2: domain[0].nam: found an unknown key"),
    (b"[[domain]]\nnam = 1\n", "application/toml", 400, '(did you mean "name"?)'),
    (b"a = \n", "application/toml", 400, "scenario:1: a: found no value of TOML"),
    (b"# \xff\n", "application/toml", 400, "found the byte 0xff in line 1, expected UTF-8"),
    (b"[[graph]]\n" * 30, "application/toml", 400, "And 10 more."),
    (b'{"domain": 1}', "application/json; charset=utf-8", 400, "scenario: domain: found 1, expected [[domain]]"),
    (b"[]", "application/json", 400, "The body: "),
    (b"{", "application/json", 400, "The body: "),
    (b"", "application/json", 400, "The body: "),
    (b"#" * (SCENARIO_BYTES_MAX + 1), "application/toml", 413, "262144 bytes"),
    (b"", "text/plain", 415, "Content-Type: found 'text/plain', expected application/toml or application/json."),
    (b"", "application/x-www-form-urlencoded", 415, "Content-Type"),
    (b"", "", 415, "Content-Type: found ''"),
]  # fmt: skip


async def test_a_faulty_scenario_changes_nothing(running):
    async with running("gmail") as client:
        before = (await client.get(INTERNET)).text
        for content, media_type, status, expected in FAULTY:
            headers = {"content-type": media_type}
            answer = await client.put(INTERNET, content=content, headers=headers)
            assert answer.status_code == status, answer.text
            assert expected in answer.json()["error"]["message"]
            assert answer.headers["request-id"]
            assert (await client.get(INTERNET)).text == before


async def test_a_large_body_without_a_length_is_refused(running):
    async def blocks():
        for _ in range(5):
            yield b"#" * 65_536

    async with running() as client:
        answer = await client.put(INTERNET, content=blocks(), headers=TOML)
        assert answer.status_code == 413


async def test_who_may_replace_a_scenario(running):
    async with running() as client:
        for method in ("GET", "PUT"):
            for origin in ("http://evil.test", "https://127.0.0.1.evil.test", "null"):
                headers = TOML | {"origin": origin}
                answer = await client.request(method, INTERNET, content="", headers=headers)
                assert answer.status_code == 403, answer.text
        own = TOML | {"origin": str(client.base_url).rstrip("/")}
        assert (await client.put(INTERNET, content="", headers=own)).status_code == 200
        anonymous = await client.get(INTERNET, headers={"authorization": ""})
        assert anonymous.status_code == 200
        other = await client.post(INTERNET, content="", headers=TOML)
        assert (other.status_code, other.headers["allow"]) == (405, "GET, PUT")


async def test_a_scenario_given_at_the_start(running, tmp_path):
    (tmp_path / "mine.toml").write_text(SCENARIO)
    async with running("gmail:5.1.1", f"{tmp_path}/mine.toml") as client:
        answer = await client.send_to("anyone@gmail.com", "x@shop.test")
        found = await client.recipients(answer)
        assert found["x@shop.test"] == ("failed", "550 5.1.1 gone")
        state, reply = found["anyone@gmail.com"]
        assert state == "failed"
        assert reply.startswith(
            "550 5.1.1 The email account that you tried to reach does not exist."
        )


def test_a_faulty_scenario_at_the_start_is_an_error(short_path):
    options = DevelopmentOptions(http=LOCAL, https=LOCAL, smtp=LOCAL, scenarios=("gmial",))
    with pytest.raises(SettingsError, match="found no scenario of this name"):
        DevelopmentRelay(open_folder(short_path / "dev"), options)


def test_the_command_ends_with_78_and_each_fault(short_path):
    (short_path / "mine.toml").write_text('[[domain]]\nname = "a.test"\ntls = "off"\nx = 1\n')
    command = [*relay_starts.RELAY, "dev", "--once", "--dir", str(short_path / "dev")]
    environment = {"PATH": os.environ["PATH"], "HOME": str(short_path), "PYTHONPATH": str(ROOT)}
    done = relay_starts.run(
        [*command, "--scenario", "gmail", "--scenario", "./mine.toml"],
        cwd=short_path, env=environment,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (78, "")
    assert (
        'mine.toml:3: domain[0].tls: found "off", expected one of offered, required' in done.stderr
    )
    assert "mine.toml:4: domain[0].x: found an unknown key" in done.stderr
    assert "Traceback" not in done.stderr


async def test_faults_of_the_front_door(running, tmp_path):
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
    (tmp_path / "faults.toml").write_text(faults)
    async with running(f"{tmp_path}/faults.toml") as client:
        first = await client.send_to("bob@example.test")
        assert (first.status_code, first.headers["retry-after"]) == (429, "1")
        second = await client.send_to("bob@example.test")
        assert second.status_code == 504
        assert (await client.get("/v1.0/me/messages")).status_code == 200
        # what SDKs do after a 504: the message is not sent a second time
        third = await client.send_to("bob@example.test", headers={"retry-attempt": "1"})
        assert (await client.recipients(third))["bob@example.test"][0] == "delivered"
        inbox = await client.get(
            "/v1.0/me/mailFolders/inbox/messages", headers={"authorization": "Bearer bob"}
        )
        assert len(inbox.json()["value"]) == 1


async def test_the_control_socket_shows_the_scenario(running, short_path):
    async with running("yahoo"):
        transport = httpx.AsyncHTTPTransport(uds=str(short_path / "dev/state/run/control.sock"))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as control:
            answer = await control.get(INTERNET, headers={"accept": "application/json"})
            assert json.loads(answer.content)["used"][0]["entry"] == "yahoo.com: DOT nouser"


async def test_a_limit_ends_when_the_clock_is_advanced(running, tmp_path):
    limited = """
[[domain]]
name = "shop.test"
[[domain.limit]]
messages = "1/10m"
reply = "421 4.7.28 too many messages"
"""
    (tmp_path / "limited.toml").write_text(limited)
    async with running(f"{tmp_path}/limited.toml") as client:
        first = await client.send_to("a@shop.test")
        assert (await client.recipients(first))["a@shop.test"][0] == "relayed"
        second = await client.send_to("b@shop.test")
        await client.advance(9 * 60)
        assert await client.now(second) == {
            "b@shop.test": ("deferred", "421 4.7.28 too many messages")
        }
        await client.advance(20 * 60)
        assert (await client.now(second))["b@shop.test"][0] == "relayed"


async def test_faults_of_dns_end_in_a_delivery_or_a_bounce(running, tmp_path):
    faulty = """
[[domain]]
name = "once.test"
[[domain.reply]]
verb = "DNS"
action = "servfail"
times = 1
[[domain]]
name = "nowhere.test"
[[domain.reply]]
verb = "DNS"
action = "nxdomain"
[[domain]]
name = "null.test"
null_mx = true
[[domain]]
name = "second.test"
mx = [
    { host = "mx1.second.test", preference = 1, addresses = "none" },
    { host = "mx2.second.test", preference = 2 },
]
[[domain]]
name = "hidden.test"
addresses = "none"
"""
    (tmp_path / "faulty.toml").write_text(faulty)
    names = ("once", "nowhere", "null", "second", "hidden")
    async with running(f"{tmp_path}/faulty.toml") as client:
        answer = await client.send_to(*(f"a@{name}.test" for name in names))
        await client.advance(5 * 60)
        found = {key[2:-5]: state for key, (state, _) in (await client.now(answer)).items()}
        assert found == {
            "once": "relayed",
            "nowhere": "failed",
            "null": "failed",
            "second": "relayed",
            "hidden": "failed",
        }


async def test_a_host_fails_over_to_the_next_one(running, tmp_path):
    hosts = """
[[domain]]
name = "shop.test"
mx = [{ host = "one.shop.test", preference = 1 }, { host = "two.shop.test", preference = 2 }]
[[domain.reply]]
verb = "CONNECT"
host = "one.*"
action = "drop"
[[domain.reply]]
verb = "DOT"
host = "two.*"
reply = "250 2.0.0 kept by two"
"""
    (tmp_path / "hosts.toml").write_text(hosts)
    async with running(f"{tmp_path}/hosts.toml") as client:
        found = await client.recipients(await client.send_to("a@shop.test"))
        assert found == {"a@shop.test": ("relayed", "250 2.0.0 kept by two")}
