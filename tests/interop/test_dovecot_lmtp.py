"""Real mail servers behind LMTP: Dovecot's takes and refuses what Relay sends it, as the recipe says."""

import re
from collections.abc import Iterator

import pytest

from tests.support.dovecot import NoDovecotError
from tests.support.dovecot_daemon import DovecotLmtp
from tests.support.relay_config import DOMAIN
from tests.support.relay_process import ROOT, RelayProcess, until
from tests.support.tables import each_row

PAGE = (ROOT / "docs" / "operation-routes.md").read_text()
RECIPE = PAGE.partition("\n## Deliver to Dovecot by LMTP\n")[2].partition("\n## ")[0]
SERVICES = dict(  # by Dovecot's version
    re.findall(
        r"Dovecot (2\.\d) [^\n]*:\n\n```\n(service.*?)^```$", RECIPE, re.MULTILINE | re.DOTALL
    )
)
TCP, SOCKET = "by-tcp", "example"  # domains, each with a route
PEOPLE = {
    f"{name}@{domain}.org": size
    for domain in (TCP, SOCKET)
    for name, size in {
        "alice": None,
        "bob": None,
        "full": 10,
        "over-tcp": 1000,
        "over-socket": 1000,
    }.items()
}
STRANGER = "127.0.0.2"


@pytest.fixture(scope="module")
def dovecot() -> Iterator[DovecotLmtp]:
    try:
        with DovecotLmtp(PEOPLE, services=SERVICES) as started:
            yield started
    except NoDovecotError as why:
        pytest.skip(str(why))


@pytest.fixture(scope="module")
def relay(dovecot: DovecotLmtp) -> Iterator[RelayProcess]:
    """A relay with the route of the recipe, and the same by TCP. Dovecot does not know gone@."""
    [route] = re.findall(r"^```toml\n(.*?)^```$", RECIPE, re.MULTILINE | re.DOTALL)
    [by_tcp] = re.findall(r'next_hop = "lmtp://[^"]*"', RECIPE)
    [by_socket] = re.findall(r"next_hop = .*", route)
    routes = [
        route.replace("/run/dovecot/lmtp", str(dovecot.path)),
        route.replace("example.org", f"{TCP}.org").replace(
            by_socket, by_tcp.replace("mail.example.org:24", f"127.0.0.1:{dovecot.port}")
        ),
    ]
    domains = [f"{one}.org" for one in (TCP, SOCKET)]
    known = [*PEOPLE, *(f"gone@{one}" for one in domains)]
    made = RelayProcess(
        config={"mailboxes": {"domains": [DOMAIN, *domains]}},
        accounts=[{"address": one} for one in known],
    )
    with made.config_file.open("a") as file:
        file.write("\n".join(["", *routes]))
    with made:
        yield made


@each_row("domain", [TCP, SOCKET])
def test_dovecot_has_an_answer_for_each_recipient(
    relay: RelayProcess, dovecot: DovecotLmtp, domain: str
) -> None:
    names = ("alice", "gone", "full", "bob")
    people = [f"{name}@{domain}.org" for name in names]
    content = "Subject: to Dovecot\r\n\r\nÜber LMTP.\r\n.\r\n".encode()
    journey = relay.until_final(relay.submit("carol@example.test", people, content))
    found = {one["address"].partition("@")[0]: one for one in journey["recipients"]}
    assert {name: one["state"] for name, one in found.items()} == {
        "alice": "delivered",
        "gone": "failed",
        "full": "failed",
        "bob": "delivered",
    }
    assert found["gone"]["status"] == "5.1.1"
    assert found["full"]["status"] == "5.2.2"
    assert [one["attempts"][0]["outcome"] for one in found.values()].count("delivered") == 2
    for name in ("alice", "bob"):
        (mail,) = [one for one in dovecot.mail(f"{name}@{domain}.org") if b"carol@" in one]
        fields, _, body = mail.partition(b"\n\n")
        assert fields.count(b"Return-Path: <carol@example.test>") == 1
        assert body == "Über LMTP.\n.\n".encode()
    assert dovecot.mail(f"full@{domain}.org") == []


@each_row("domain", [TCP, SOCKET])
def test_a_stranger_sends_to_accounts_only(
    relay: RelayProcess, dovecot: DovecotLmtp, domain: str
) -> None:
    sender, to = "eve@away.test", f"alice+tag@{domain}.org"
    relay.until_final(relay.submit(sender, [to, f"gone@{domain}.org"], source=STRANGER))
    found = [one for one in dovecot.mail(f"alice@{domain}.org") if sender.encode() in one]
    assert len(found) == 1
    with relay.smtp(source=STRANGER) as session:
        session.ehlo()
        session.mail(sender)
        code, text = session.rcpt(f"nobody@{domain}.org")
        assert (code, text[:6]) == (550, b"5.1.1 ")
        code, text = session.rcpt("x@away.test")
        assert (code, text[:6]) == (550, b"5.7.1 ")


@each_row("domain", [TCP, SOCKET])
def test_a_success_is_reported_as_delivered(relay: RelayProcess, domain: str) -> None:
    """Dovecot offers no DSN, so Relay makes the report."""
    journey = relay.until_final(
        relay.submit("dave@example.test", [f"bob@{domain}.org"], rcpt_options=["NOTIFY=SUCCESS"])
    )
    reports = [step["detail"] for step in journey["steps"] if step["step"] == 7]
    assert [one["kind"] for one in reports] == ["delivered"]


@pytest.mark.parametrize("by", ["tcp", "socket"])
def test_strangers_may_send_to_whom_dovecot_knows(dovecot: DovecotLmtp, by: str, serve) -> None:
    hop = f"lmtp:unix:{dovecot.path}" if by == "socket" else f"lmtp://127.0.0.1:{dovecot.port}"
    domain = f"{TCP}.org"
    config = {
        "domain": [{"name": domain, "recipients": "verify"}],
        "route": [{"domain": domain, "next_hop": hop}],
    }
    dovecot.fill(f"over-{by}@{domain}")
    relay = serve(config=config)
    with relay.smtp(source=STRANGER) as session:
        session.ehlo("stranger.test")
        session.mail("ann@stranger.test")
        assert session.rcpt(f"alice@{domain}")[0] == 250
        code, text = session.rcpt(f"gone@{domain}")
        assert (code, text[:5]) == (550, b"5.1.1")
        code, text = session.rcpt(f"over-{by}@{domain}")
        assert (code, text[:5]) == (552, b"5.2.2")
        content = f"Subject: verified by {by}\r\n\r\ntext\r\n".encode()
        assert session.data(content)[0] == 250
    until(
        "Dovecot has it",
        lambda: any(f"verified by {by}".encode() in one for one in dovecot.mail(f"alice@{domain}")),
    )
