"""The pages that release captured mail: to whom, and where it goes, is shown before it is done."""

import re
from typing import Any

import httpx
import pytest

from tests.support.dev_process import DevProcess
from tests.support.ports import free_port
from tests.unit.front_door.pages.conftest import plain

HOST = f"smtp://127.0.0.1:{free_port()}"  # nobody listens: what was released is deferred


@pytest.fixture(scope="module")
def dev(dev_module) -> DevProcess:
    return dev_module("--no-demo", "--release-to", HOST, "--release-allow", "*@mine.test")


class Visit:
    """A browser without scripts on one message."""

    def __init__(self, dev: DevProcess, recipient: str) -> None:
        self.dev, self.key = dev, dev.send_captured(recipient, b"Subject: Kept\r\n\r\nx")

    def get(self, path: str) -> str:
        answer = self.request("GET", path)
        assert answer.status_code == 200, answer.text
        return answer.text

    def release(self, to: str, **fields: str) -> httpx.Response:
        page = self.get(f"/queue/release?id={self.key}&message={self.key}")
        csrf = re.findall(r'name="csrf" value="([^"]+)"', page)[0]
        data = {"csrf": csrf, "to": to} | fields
        return self.request("POST", f"/messages/{self.key}/release", data=data)

    def request(self, method: str, path: str, **more: Any) -> httpx.Response:
        return httpx.request(method, self.dev.url + path, trust_env=False, **more)

    def states(self) -> list[str]:
        journey = self.dev.get(f"/relay/v1/messages/{self.key}", self.dev.ready["token"]).json()
        return [one["state"] for one in journey["recipients"]]


def test_a_copy_is_confirmed_first_and_goes_to_typed_addresses(dev: DevProcess) -> None:
    visit = Visit(dev, "ann@customer.test")
    page = plain(visit.get(f"/messages/{visit.key}"))
    assert "Release…" in page
    page = plain(visit.get(f"/queue/release?id={visit.key}&message={visit.key}"))
    assert f"A copy leaves this machine for {HOST}" in page
    assert "Not possible: no --release-allow of this relay matches them." in page
    assert "It leaves this machine" not in page
    shown = visit.release("me@office.test, you@office.test;\r\nme@office.test")
    assert shown.status_code == 200
    text = f"It leaves this machine for {HOST}, to me@office.test, you@office.test."
    assert text in plain(shown.text)
    assert "ann@customer.test stays captured" in plain(shown.text)
    assert visit.states() == ["captured"]
    done = visit.release("me@office.test you@office.test", confirmed="true", reason="a look")
    assert done.status_code == 303
    page = plain(visit.get(f"/messages/{done.headers['location'].rpartition('/')[2]}"))
    assert "Released: a copy goes to 2 addresses." in page
    assert "a copy for me@office.test, you@office.test" in page
    assert "because: a look" in page
    assert visit.states()[0] == "captured"
    assert len(visit.states()) == 3


def test_own_recipients_are_named_before_their_mail_leaves(dev: DevProcess) -> None:
    visit = Visit(dev, "joe@mine.test")
    page = plain(visit.get(f"/queue/release?id={visit.key}&message={visit.key}"))
    assert f"It leaves this machine for {HOST}, to joe@mine.test." in page
    assert "Not possible" not in page
    # of several messages no copy is made
    other = Visit(dev, "ann@customer.test").key
    page = plain(visit.get(f"/queue/release?id={visit.key}&id={other}"))
    assert f"It leaves this machine for {HOST}, to joe@mine.test." in page
    assert "Addresses for a copy" not in page
    assert "would release 1 of 2 entries" in page


def test_a_release_needs_the_token_of_its_form(dev: DevProcess) -> None:
    visit = Visit(dev, "ann@customer.test")
    path = f"/messages/{visit.key}/release"
    fields = {"to": "me@office.test", "confirmed": "true"}
    assert visit.request("POST", path, data=fields).status_code == 403
    assert visit.request("GET", path).status_code == 405
    assert visit.states() == ["captured"]
