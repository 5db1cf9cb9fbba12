"""Mail leaves with tokens of another relay's token endpoint, through its SMTP listener (XOAUTH2)."""

import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from tests.integration.test_reload import hang_up
from tests.support.client_keys import certificate
from tests.support.relay_config import account
from tests.support.relay_process import RelayProcess, until

SECRET, WRONG = "s3cret+/of-app", "wr0ng-secret"
SCOPE = "https://outlook.office365.com/.default"
KEYED = certificate()
MAIL = "Subject: {}\r\n\r\nx\r\n"


@pytest.fixture
def cloud(serve) -> RelayProcess:
    """It has the domains b.test and c.test, an application that may send as bob, and his mailbox."""
    bob = ["bob@example.test"]
    return serve(
        accounts=[account("app", client_id="app-1", client_secret=f"plain:{SECRET}", acts_for=bob)],
        aliases={"in@b.test": bob, "in@c.test": bob},
        config={"mailboxes": {"domains": ["example.test", "b.test", "c.test"]}},
    )


@pytest.fixture
def outgoing(serve, cloud) -> Iterator[RelayProcess]:
    """It sends to b.test with one secret and to c.test with another, which is wrong at first."""
    host, port = cloud.smtp_address()
    url = f"{cloud.url}/contoso/oauth2/v2.0/token"
    client = {"token_url": url, "scope": SCOPE}
    routes = [
        {
            "domain": domain,
            "next_hop": f"smtp://{host}:{port}",
            "auth": {"user": "bob@example.test", "oauth": name},
        }
        for domain, name in (("b.test", "good"), ("c.test", "app"))
    ]
    clients = [
        {"name": name, "client_id": "app-1", "client_secret": f"${{file:{file}}}", **client}
        for name, file in (("good", "good"), ("app", "secret"))
    ]
    relay = serve(config={"route": routes, "oauth": clients}, start=False)
    for name, secret in (("good", SECRET), ("secret", WRONG)):
        (relay.folder / name).write_text(secret)
        (relay.folder / name).chmod(0o600)
    yield relay.start()
    for secret in (SECRET, WRONG):
        assert secret not in relay.log


def test_mail_leaves_with_a_token_and_waits_without_one(cloud, outgoing):
    outgoing.submit("bob@example.test", ["in@b.test"], MAIL.format("at once").encode())
    until("it has arrived", lambda: "at once" in cloud.subjects("bob"))
    assert outgoing.metric("relay_oauth_requests_total", oauth="good", result="ok") == 1
    outgoing.submit("bob@example.test", ["in@c.test"], MAIL.format("later").encode())
    (entry,) = until("deferred", lambda: [e for e in outgoing.queue() if e["attempts"]])
    said = entry["recipients"][0]["reply"]
    assert "AADSTS7000215" in said
    assert 'check [[oauth]] "app"' in said
    assert outgoing.metric("relay_attempts_total", outcome="deferred", **{"class": "auth"}) >= 1
    assert 'ready; [[oauth]] "app" gives no token' in outgoing.get("/readyz").text
    assert outgoing.cli("oauth", "test", "app").returncode == 78
    checked = outgoing.cli("check", "--online")
    assert "AADSTS7000215" in checked.stderr
    for text in (said, checked.stderr, json.dumps(outgoing.queue())):
        assert WRONG not in text
    (outgoing.folder / "secret").write_text(SECRET)
    hang_up(outgoing, "reloaded")
    until("it has arrived", lambda: "later" in cloud.subjects("bob"))
    (row,) = outgoing.cli_json("oauth", "test", "app")
    assert row["for"] == "bob@example.test"
    assert "Mail.Send" in row["scopes"]
    until("ready", lambda: "oauth" not in outgoing.get("/readyz").text)


def day(days: float) -> str:
    return (datetime.now(UTC) + timedelta(days=days)).date().isoformat()


def test_a_secret_that_cannot_ask_for_a_token_refuses_a_reload_and_no_start(serve):
    """And an end, of the secret or the certificate, is named from 30 days before, and refuses nothing."""
    soon_s = int(time.time()) + 5 * 86400
    ending = certificate(ends_s=soon_s)
    pems = {
        "ends": ending.pem + ending.key_pem,
        "keyless": KEYED.pem,
        "another": KEYED.pem + certificate("ec").key_pem,
    }
    client = {"token_url": "https://login.test/token", "scope": "s", "client_id": "c"}
    ends = {"secret": day(31), "old": day(-400), "next": day(29), "never": "9999-12-31"}
    clients = [{"name": x, "certificate": f"{x}.pem", **client} for x in pems]
    clients += [{"name": "google", "provider": "google", "service_account": "google.json"}]
    clients += [
        {"name": x, "client_secret": "x", "secret_ends": y, **client} for x, y in ends.items()
    ]
    auth = {"user": "b@b.test", "oauth": "keyless"}
    route = {"domain": "b.test", "next_hop": "smtp://127.0.0.1:2", "auth": auth}
    relay = serve(config={"oauth": clients, "route": [route]}, start=False)
    for name, text in pems.items():
        (relay.folder / f"{name}.pem").write_text(text)
    (relay.folder / "google.json").write_text("no JSON")
    relay.start()
    relay.submit("bob@example.test", ["x@b.test"], MAIL.format("waits").encode())
    until("deferred", lambda: any(entry["attempts"] for entry in relay.queue()))
    assert relay.metric("relay_attempts_total", outcome="deferred", **{"class": "auth"}) == 1
    words = relay.get("/readyz").text
    for text in ("an RSA key in PEM", "JSON of a service account", "ends, the", "has ended, the"):
        assert text in words
    assert '"secret"' not in words
    for name, days in (("ends", 5), ("old", -399), ("secret", 32)):
        left_s = relay.metric("relay_oauth_secret_expires_seconds", oauth=name)
        assert left_s == pytest.approx(days * 86400, abs=86400)
    logged = re.findall(r'a (\w+) for tokens ends.*"its (\w+) (?:ends|has ended),', relay.log)
    assert logged == [("certificate",) * 2, *[("secret",) * 2] * 2]
    assert relay.cli("reload").returncode == 78
    checked = relay.cli("check", "--json")
    found = [each for each in json.loads(checked.stdout) if each["check"] == "oauth"]
    assert (checked.returncode, any(each["refuses_start"] for each in found)) == (78, False)
    assert Counter(each["verdict"] for each in found) == {"fault": 3, "warning": 3, "ok": 5}
    for name in ("keyless", "another"):
        (relay.folder / f"{name}.pem").write_text(KEYED.pem + KEYED.key_pem)
    (relay.folder / "google.json").write_text(
        json.dumps({"client_email": "a@b.test", "private_key": KEYED.key_pem})
    )
    assert "JSON" not in relay.get("/readyz").text
    assert relay.cli("reload").returncode == 0
    assert '"verdict":"fault"' not in relay.cli("check", "--json").stdout.replace(" ", "")
