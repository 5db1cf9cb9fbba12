"""`relay dev --cloud`: a second relay plays Microsoft 365, and mail goes out through it.

The second relay is asked here as Graph is: by plain HTTP requests, with a token of its endpoint.
"""

import base64
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from relay.testing import Relay
from tests.support.dev_process import DevProcess, run_dev
from tests.support.relay_process import until
from tests.support.tables import each_row

ANN = "ann@customer.example"


class Cloud:
    """The second relay, for the client that the first one's configuration names."""

    def __init__(self, relay: DevProcess) -> None:
        [oauth] = tomllib.loads(relay.config_file.read_text())["oauth"]
        names = ("client_id", "client_secret", "scope")
        form = {"grant_type": "client_credentials", **{name: oauth[name] for name in names}}
        token = httpx.post(oauth["token_url"], data=form, trust_env=False).json()["access_token"]
        self.client = httpx.Client(base_url=relay.ready["cloud"], trust_env=False, timeout=120)
        self.client.headers["Authorization"] = f"Bearer {token}"

    def use(self, scenario: str) -> None:
        fields = {"Content-Type": "application/toml"}
        made = self.client.put("/relay/v1/dev/internet", content=scenario, headers=fields)
        assert made.status_code == 200, made.text

    def send(self, sender: str) -> httpx.Response:
        """Send a message from this user as MIME."""
        author = f"{sender}@example.test"
        text = f"From: {author}\r\nTo: {ANN}\r\nMessage-ID: <{sender}@x.test>\r\n\r\nx\r\n"
        path = f"/v1.0/users/{author}/sendMail"
        content = base64.b64encode(text.encode())
        return self.client.post(path, content=content, headers={"Content-Type": "text/plain"})

    def mime(self, address: str, folder: str) -> list[bytes]:
        """The MIME of what this folder of a mailbox has."""
        path = f"/v1.0/users/{address}/messages"
        found = [one["id"] for one in self.messages(address, folder)]
        return [self.client.get(f"{path}/{one}/$value").content for one in found]

    def messages(self, address: str, folder: str) -> list[dict[str, Any]]:
        """What this folder of a mailbox has."""
        path = f"/v1.0/users/{address}/mailFolders/{folder}/messages"
        return list(self.client.get(path).json().get("value", ()))


def through_cloud(relay: DevProcess, mailbox: str) -> dict[str, Any]:
    """The tables of another relay whose mail and reports leave as this mailbox."""
    found = tomllib.loads(relay.config_file.read_text())
    auth = {"user": mailbox, "oauth": "cloud"}
    route = {"domain": "*", "next_hop": found["route"][0]["next_hop"], "auth": auth}
    return {"oauth": found["oauth"], "route": [{"name": "m365", "reports": True, **route}]}


@pytest.fixture(scope="module")
def relay(dev_module) -> DevProcess:
    return dev_module("--cloud", "--no-demo")


@pytest.fixture(scope="module")
def cloud(relay: DevProcess) -> Iterator[Cloud]:
    made = Cloud(relay)
    with made.client:
        yield made


@each_row(
    "status, answered, taken",
    [
        ("403", (403, "ErrorSendAsDenied", ""), False),
        ("404", (404, "ErrorInvalidUser", ""), False),
        ("413", (413, "RequestEntityTooLarge", ""), False),
        ("429", (429, "ApplicationThrottled", "7"), False),
        ("503", (503, "ResourceUnhealthy", "7"), False),
        ("504", (504, "GatewayTimeout", "7"), True),
        ("401", (401, "InvalidAuthenticationToken", ""), False),
    ],
)
def test_a_fault_of_its_internet_page(cloud: Cloud, status, answered, taken) -> None:
    sender = f"s{answered[0]}"
    path = "path = '*/sendMail'\nretry_after = 7\ntimes = 1\n"
    cloud.use(f"[[graph]]\nstatus = {status}\n{path}")
    failed = cloud.send(sender)
    code, retry_after = failed.json()["error"]["code"], failed.headers.get("retry-after", "")
    assert (failed.status_code, code, retry_after) == answered
    assert "for any method */sendMail: used 1, 0 left" in cloud.client.get("/internet").text
    assert cloud.send(sender).status_code == 202
    assert cloud.client.post("/relay/v1/quiet", json={"timeout_s": 10}).json()["quiet"] is True
    assert len(cloud.messages(f"{sender}@example.test", "sentitems")) == 1 + taken
    assert cloud.messages(f"{sender}@example.test", "drafts") == []


def test_mail_goes_out_through_the_cloud(relay: DevProcess, cloud: Cloud) -> None:
    """A lost answer is looked up: it arrives once, and at nobody but the envelope's recipient."""
    cloud.use('[[graph]]\nstatus = 504\npath = "*/send"\ntimes = 1\n')
    carl, eve, fred = "carl@example.test", "eve@customer.example", "fred@customer.example"
    text = f"From: {carl}\r\nTo: {eve}, {fred}\r\nSubject: Offer\r\n\r\nx"
    key = relay.submit(carl, [eve, "bob@example.test"], text.encode())
    relay.until_final(key)
    assert relay.states(key) == {eve: "relayed", "bob@example.test": "delivered"}
    assert cloud.client.post("/relay/v1/quiet", json={"timeout_s": 10}).json()["quiet"] is True
    assert [len(cloud.messages(carl, one)) for one in ("sentitems", "drafts")] == [1, 0]
    [arrived] = cloud.messages(eve, "inbox")
    assert [one["emailAddress"]["address"] for one in arrived["toRecipients"]] == [eve]
    nothing = cloud.client.get(f"/v1.0/users/{fred}/messages")
    assert (nothing.status_code, nothing.json()["error"]["code"]) == (404, "ErrorInvalidUser")


def test_what_the_cloud_refuses_is_a_report_in_the_mailbox_there(relay, cloud: Cloud) -> None:
    """Its mailbox is the one of docs/cloud.md, which no option names."""
    cloud.use('[[graph]]\nstatus = 403\npath = "*/send"\ntimes = 1\n')
    printer = "printer@contoso.example"
    key = relay.submit(printer, [ANN], f"From: {printer}\r\nTo: {ANN}\r\n\r\nx".encode())
    relay.until_final(key)
    assert (
        "Failed: Microsoft 365 (simulated): HTTP 403 ErrorSendAsDenied"
        in relay.cli("trace", key).stdout
    )
    [report] = until("its report", lambda: cloud.messages(printer, "inbox"))
    assert "SendAs" in report["body"]["content"]


def test_an_order_on_mail_that_the_cloud_may_have_sent(relay: DevProcess, cloud: Cloud) -> None:
    """429 sends nothing; 503 may have; 504 has."""
    keys = {}
    for status in ("429", "503", "504"):
        sender = f"order{status}@example.test"
        cloud.use(f'[[graph]]\nstatus = {status}\npath = "*/send"\ntimes = 1\n')
        head = f"From: {sender}\r\nTo: {ANN}\r\nSubject: {status}\r\n\r\nx"
        keys[status] = relay.submit(sender, [ANN], head.encode())
        relay.until_state(keys[status], "deferred")
    told = {one: relay.cli("queue", "cancel", "--bounce", key) for one, key in keys.items()}
    assert {one.returncode for one in told.values()} == {0}
    assert "ordered" not in told["429"].stdout
    for status in ("503", "504"):
        assert "    ordered: when Graph answers, at the latest 20" in told[status].stdout
        assert "cancelled 0 of 1 entry, 1 ordered" in told[status].stdout
    relay.until_final(keys["504"])
    assert "ordered: cancel, at the latest 20" in relay.cli("queue", "show", keys["503"]).stdout
    relay.advance(600)  # a draft may still be sent until two minutes have passed
    states = {status: relay.until_final(key)["state"] for status, key in keys.items()}
    assert states == {"429": "cancelled", "503": "cancelled", "504": "relayed"}
    assert cloud.client.post("/relay/v1/quiet", json={"timeout_s": 10}).json()["quiet"] is True
    for status, sent in (("429", 0), ("503", 0), ("504", 1)):
        author = f"order{status}@example.test"
        assert [len(cloud.messages(author, one)) for one in ("sentitems", "drafts")] == [sent, 0]
        assert len(relay.messages("inbox", token=author)) == 1 - sent, "its report"


# with a token, the demonstration has a relay of its own
@each_row("words", [[], ["--token=0123456789abcdef"]])
def test_the_demonstration_goes_out_through_a_cloud(short_path: Path, words) -> None:
    done = run_dev(short_path, "--cloud", "--once", *words)
    assert (done.returncode, "friend@elsewhere.test relayed by" in done.stdout) == (0, True)


def test_a_test_describes_a_cloud() -> None:
    strict = {"http": {"profile": "strict"}}
    with Relay(config=strict) as cloud, Relay(config=cloud.as_cloud) as relay:
        cloud.internet.graph(429, path="*/messages", retry_after=60, times=1)
        sent = relay.send("alice@example.test", ANN, "Invoice")
        assert sent.state == "deferred"
        relay.clock.advance(minutes=2)
        assert sent.state == "relayed"
        assert [one.subject for one in cloud.mailbox(ANN).messages()] == ["Invoice"]


def test_mail_above_the_rate_of_a_route_waits_for_the_clock() -> None:
    with Relay() as cloud:
        config = cloud.as_cloud
        config["route"][0]["max_rate"] = "1/1h"
        with Relay(config=config) as relay:
            sent = [relay.send("alice@example.test", ANN, f"{number}") for number in range(2)]
            relay.settle()
            assert [one.state for one in sent] == ["relayed", "queued"]
            relay.clock.advance(hours=1)
            assert [one.state for one in sent] == ["relayed"] * 2
