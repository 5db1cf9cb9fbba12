"""A null client: the one of the page, and who hears of failures."""

import re
import tomllib
from email import message_from_bytes
from typing import Any

from tests.support.relay_config import changed
from tests.support.relay_process import ROOT, RelayProcess, until
from tests.support.remotes import Remotes, received
from tests.support.tables import each_row
from tests.support.tls import Authority, authority

__all__ = ["authority"]
PAGE = (ROOT / "docs/operation-run.md").read_text().partition("\n### A null client\n")[2]
SETTINGS, RULES = re.findall(r"```toml\n(.*?)```", PAGE.partition("\n### ")[0], re.DOTALL)
WEB7, LOGIN, READER = "root@web7.contoso.example", "web7@contoso.example", "it@contoso.example"
UNREAD = "reports to USER@web7.contoso.example end in the dead-letter mailbox, which nobody reads"
PLACE = (
    "553 5.7.1 the sender is not the login. The report is in the dead-letter mailbox, which nobody reads"
    " (STATE/dead-letter): set reports.copy_to, or a route."
)


def null_client(remotes: Remotes, *changes: dict[str, Any], **more: Any) -> RelayProcess:
    """The relay of the page without accounts; each of `changes` is a route in place of its own."""
    page = tomllib.loads(SETTINGS)
    page["route"] = [page["route"][0] | route for route in changes]
    page["sendmail"] = {"socket": "submit.sock", "drop": ""}
    page["mailboxes"] = {"root": "mail"}
    page = {name: page[name] for name in page.keys() - {"smtp", "state_dir"}}
    relay = remotes.relay(policies={"10.toml": RULES})
    relay.config = changed(relay.config | {"mailboxes": {}}, page | more)
    relay.write_config(relay.config)
    (relay.folder / "accounts.toml").unlink()
    (relay.folder / "web7.password").write_text("a password\n")
    return relay


def checked(relay: RelayProcess) -> str:
    """What `relay check` says, which finds no fault."""
    done = relay.cli("check")
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def until_told(relay: RelayProcess, queue_id: str, text: str) -> None:
    """Wait until the trace of a message says this."""
    until(text, lambda: text in relay.cli("trace", queue_id).stdout)


@each_row("user", [LOGIN, "AKIA000"])
def test_the_null_client_of_the_page_sends_as_its_login_and_so_does_the_copy_of_a_report(
    remotes: Remotes, authority: Authority, user: str
) -> None:
    assert len(f"{SETTINGS}{RULES}".splitlines()) <= 25
    tls = authority.issue("DNS:smtp.provider.example").server_context()
    gone = {"gone@partner.example": "550 5.1.1 no such user"}
    provider = remotes.start(
        "provider.example", tls=tls, users={user: "a password"}, senders=[LOGIN], rcpt=gone
    )
    remotes.dns.zone["smtp.provider.example"] = {"A": [provider.host]}
    hop = f"smtp://smtp.provider.example:{provider.port}"
    auth = {"user": user, "password_file": "web7.password"}
    route = {"next_hop": hop, "ca": f"{authority.certificate}", "auth": auth}
    first = [] if user == LOGIN else [route | {"sender": LOGIN}]  # the login is no address
    with null_client(remotes, *first, route) as relay:
        assert UNREAD not in checked(relay)
        tagged = RULES.replace(f'"{LOGIN}"', '"web7+x@contoso.example"')
        (relay.folder / "policies/10.toml").write_text(tagged)
        assert 'found "web7+x@contoso.example", expected' in relay.cli("check").stderr
        relay.submit(WEB7, [WEB7], b"From: Cron <%b>\r\nSubject: cron\r\n\r\nx\r\n" % WEB7.encode())
        mail = received(provider, READER)
        assert (mail.reverse_path, provider.logins[mail.session]) == (LOGIN, user)
        assert b"\r\nFrom: Cron <%b>\r\n" % LOGIN.encode() in mail.content
        told = f"The report to {LOGIN} has failed. The copy was sent to {READER}."
        until_told(relay, relay.submit(WEB7, ["gone@partner.example"]), told)
        until("the copy", lambda: len(provider.received(READER)) == 2)
        copy = provider.received(READER)[1]
        assert (copy.reverse_path, provider.logins[copy.session]) == (LOGIN, user)
        read = message_from_bytes(copy.content)
        assert (read["From"], read["To"]) == (f"Mail Delivery System <{LOGIN}>", f"<{READER}>")
        assert (read["Subject"], read["Auto-Submitted"]) == ("Undeliverable: hello", "auto-replied")


def test_who_hears_nothing_is_told_where_the_report_is_and_what_to_do(remotes: Remotes) -> None:
    smarthost = remotes.start("smarthost.contoso.example", senders=["another@contoso.example"])
    hop = {"next_hop": f"smtp://{smarthost.host}:{smarthost.port}"}
    relay = null_client(remotes, hop, reports={})
    relay.config["route"][0].pop("auth")
    relay.write_config(relay.config)
    assert 'found "web7@contoso.example", expected an address of an own' in (
        relay.cli("check").stderr  # no route names it
    )
    (relay.folder / "policies/10.toml").write_text("")
    assert UNREAD in checked(relay)
    with relay:
        for _ in range(3):
            until_told(relay, relay.submit(WEB7, ["ops@contoso.example"]), PLACE)
        assert relay.log.count("reports have no reader: set reports.copy_to, or a route") == 1
        assert relay.metric("relay_reports_total", kind="dead-letter") == 3
        assert len([*relay.folder.glob("state/dead-letter/new/*")]) == 3
        relay.write_config(relay.config | {"reports": {"copy_to": READER}})
        assert relay.cli("reload").returncode == 0
        assert UNREAD not in checked(relay)
        told = f"The report to {READER} has failed."  # the smarthost refuses that too
        until_told(relay, relay.submit(WEB7, ["ops@contoso.example"]), told)
    assert relay.faults() == []


@each_row("more", [{}, {"delivery": {"expire_after": "1s", "retry": [0.2]}}])
def test_mail_that_a_rule_redirects_in_vain_is_reported_to_the_postmaster_and_the_copies_reader(
    remotes: Remotes, more: dict[str, Any]
) -> None:
    reply = "450 4.2.1 later" if more else "550 5.1.1 no such user"
    smarthost = remotes.start("smarthost.contoso.example", rcpt={READER: reply})
    hop = {"next_hop": f"smtp://{smarthost.host}:{smarthost.port}"}
    relay = null_client(remotes, hop, reports={"copy_to": "ops@contoso.example"}, **more)
    (relay.folder / "policies/10.toml").write_text("[[rule]]" + RULES.rpartition("[[rule]]")[2])
    relay.config["route"][0].pop("auth")
    relay.write_config(relay.config)
    with relay:
        queue_id = relay.submit(WEB7, [WEB7], b"Subject: cron\r\n\r\nthe disk is full\r\n")
        copy = received(smarthost, "ops@contoso.example")
        assert (reply.encode() in copy.content, b"the disk is full" in copy.content) == (
            True,
            False,
        )
        until_told(relay, queue_id, "The copy was sent to ops@contoso.example.")
        headline, _, steps = relay.cli("trace", queue_id).stdout.partition("\n")
        assert headline.startswith(f"{'Expired' if more else 'Failed'} for {READER}: ")
        assert reply in headline
        assert "The report is in the dead-letter mailbox" in headline
        assert len(re.findall("^ 7 report ", steps, re.MULTILINE)) == 2
        (letter,) = relay.folder.glob("state/dead-letter/new/*")
        assert b"multipart/report" in letter.read_bytes()
        assert b"\r\nthe disk is full\r\n" in letter.read_bytes()
        assert smarthost.envelopes == [copy]
        assert "reports have no reader" not in relay.log


def mail_postmaster(relay: RelayProcess, address: str) -> None:
    """Mail to this address of a postmaster, by the command."""
    done = relay.cli("sendmail", "-f", WEB7, address, stdin="Subject: x\n\nx\n")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_postmaster_of_the_page_is_its_reader_behind_a_smarthost_without_a_login(
    remotes: Remotes,
) -> None:
    smarthost = remotes.start("smarthost.contoso.example", senders=[LOGIN])
    hop = {"next_hop": f"smtp://{smarthost.host}:{smarthost.port}"}
    relay = null_client(remotes, hop | {"sender": LOGIN}, hop)
    for route in relay.config["route"]:
        del route["auth"]
    relay.write_config(relay.config)
    with relay:
        for number, address in enumerate(("postmaster", "postmaster@localhost")):
            mail_postmaster(relay, address)
            until("the mail", lambda number=number: len(smarthost.received(READER)) > number)
    assert {mail.reverse_path for mail in smarthost.received(READER)} == {LOGIN}


@each_row("alias", [{"postmaster@example.test": ["alice@example.test"]}, {}])
def test_mail_to_a_postmaster_goes_to_an_alias_and_who_has_none_is_told(
    remotes: Remotes, alias: dict[str, list[str]]
) -> None:
    config = {"sendmail": {"socket": "submit.sock", "drop": ""}}
    relay = remotes.relay(config=config, aliases=alias)
    unread = "mail to postmaster@example.test ends in the dead-letter mailbox"
    assert (unread in checked(relay)) is not bool(alias)
    with relay:
        mail_postmaster(relay, "postmaster")
        relay.submit(WEB7, ["postmaster"])  # by SMTP
        place = relay.folder / ("mail/example.test/alice/new" if alias else "state/dead-letter/new")
        until("both", lambda: len([*place.glob("*")]) == 2)
        told = relay.log.count("mail to postmaster has no reader: set mailboxes.postmaster")
        assert told == (not alias)
    assert relay.faults() == []
