"""The first minute: an empty relay says how to send to it, and a button sends a message."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from html import unescape

import httpx
import pytest

from tests.support.browser import Browser
from tests.support.dev_process import DevProcess
from tests.support.relay_process import until

ACTION = re.compile(r'<form method="post" action="(help/example\?key=[^"]+)">')
CSRF = re.compile(r'<input type="hidden" name="csrf" value="([^"]+)">')
COMMAND = re.compile(r'<pre id="first-(smtp|http)"[^>]*>(.*?)</pre>', re.DOTALL)


@pytest.fixture
def client(relay: DevProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=relay.ready["pages"], trust_env=False) as opened:
        yield opened


def journeys(relay: DevProcess) -> list[dict]:
    answer = relay.graph("GET", "/relay/v1/messages?kind=mail", token=relay.ready["token"])
    return list(answer.json()["messages"])


def test_the_button_sends_a_message_and_the_list_shows_it(
    browser: Browser, relay: DevProcess
) -> None:
    browser.open(relay.ready["pages"])
    browser.wait_for(".first", "nothing leaves this machine")
    browser.click("button", "Send one for me")
    browser.click("a", "Welcome to Relay")
    browser.wait_for("h1", "Welcome to Relay")
    [journey] = journeys(relay)
    assert len(journey["recipients"]) == 3
    assert browser.requests_elsewhere(relay.ready["pages"]) == []
    assert browser.console_errors() == []


def test_the_command_can_be_copied(browser: Browser, relay: DevProcess) -> None:
    rights = ["clipboardReadWrite", "clipboardSanitizedWrite"]
    browser.driver.execute_cdp_cmd("Browser.grantPermissions", {"permissions": rights})
    browser.open(relay.ready["pages"])
    command = browser.wait_for("#first-smtp").text
    browser.click("button[data-copy-from=first-smtp]")
    said = "document.getElementById('announcements').textContent"
    assert until("it is announced", lambda: browser.evaluate(said)) == "Copied."
    assert browser.evaluate("navigator.clipboard.readText()") == command


def test_one_page_sends_one_message_with_each_outcome(
    client: httpx.Client, relay: DevProcess
) -> None:
    page = client.get("").text
    action, csrf = unescape(ACTION.search(page)[1]), CSRF.search(page)[1]
    for _ in range(2):  # a double click
        answer = client.post(action, data={"csrf": csrf})
        assert (answer.status_code, answer.headers["location"]) == (303, "../")
    relay.until_state("last", "there")
    states = {one["address"]: one["state"] for one in journeys(relay)[0]["recipients"]}
    assert states == {
        "bob@example.test": "delivered",
        "ann@customer.example": "captured",
        "gone+550@customer.example": "failed",
    }
    assert len(journeys(relay)) == 1
    page = client.get("").text
    assert "Welcome to Relay" in page
    assert "Send one for me" not in page
    assert "Send one for me" in client.get("help").text


def test_the_commands_send_what_they_say(client: httpx.Client, relay: DevProcess) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    commands = dict(COMMAND.findall(client.get("help").text))
    assert set(commands) == {"smtp", "http"}
    for number, command in enumerate(map(unescape, commands.values()), 1):
        done = subprocess.run(
            ["bash", "-c", command],
            env={"PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        until("bob has it", lambda number=number: relay.subjects("bob") == ["Hello"] * number)


def test_with_a_token_the_command_names_a_variable_and_the_button_works(dev) -> None:
    token = "a-token-of-the-tests"
    dev = dev("--no-demo", "--token", token)
    with httpx.Client(base_url=dev.ready["pages"], trust_env=False) as client:
        form = client.get("login")
        fields = {"csrf": CSRF.search(form.text)[1], "next": "", "user": "", "password": token}
        assert client.post("login", data=fields).status_code == 303
        page = client.get("").text
        assert "Bearer $TOKEN" in page
        assert token not in page
        csrf = {"csrf": CSRF.search(page)[1]}
        answer = client.post(unescape(ACTION.search(page)[1]), data=csrf)
        assert answer.status_code == 303, answer.text
        assert "Welcome to Relay" in client.get("").text


def test_a_service_explains_and_has_no_button(serve) -> None:
    config = {"http": {"listen": ["127.0.0.1:0"], "pages": True}}
    relay = serve(config=config)
    url = f"http://{relay.ready['http'][0]}/"
    with httpx.Client(base_url=url, trust_env=False, follow_redirects=True) as client:
        fields = {"csrf": CSRF.search(client.get("login").text)[1], "user": "alice", "next": ""}
        page = client.post("login", data=fields | {"password": "alice"}).text
        assert "Bearer $TOKEN" in page
        assert "Send one for me" not in page
