"""Ten questions of an operator about mail, each answered by one command, with the relay running and stopped."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from relay.base.clock import SystemClock
from relay.base.settings.reader import load
from relay.operation.commands import operator_client
from tests.support.dkim import DkimKeys
from tests.support.relay_process import RelayProcess, until
from tests.support.remotes import Remotes

OK, USAGE, UNAVAILABLE = 0, 64, 69
ALICE, BOB = "alice@example.test", "bob@example.test"
STRANGER = "127.0.0.2"
HOLD = """\
[[rule]]
name = "contracts are read first"
when = { subject = "Contract*" }
then = [ { hold = "waits for legal" } ]
"""
ALIAS = '\n[[alias]]\naddress = "shop@example.test"\nto = ["ann@a.test"]\n'


@dataclass
class Yesterday:
    """A relay with mail for each question; `ids` are the queue ids by subject."""

    relay: RelayProcess
    ids: dict[str, str]

    def asked(self, *words: str) -> list[str]:
        """The lines of a command that succeeds."""
        done = self.relay.cli(*words)
        assert done.returncode == OK, done.stderr
        return done.stdout.splitlines()

    def line(self, *words: str, subject: str) -> str:
        """The only line of relay log about one message."""
        (line,) = self.asked("log", *words)
        assert f'"{subject}"' in line, line
        assert self.ids[subject] in line, line
        return line


def content(subject: str, message_id: str = "") -> bytes:
    name = f"Message-ID: {message_id}\r\n" if message_id else ""
    return f"From: {ALICE}\r\n{name}Subject: {subject}\r\n\r\nx\r\n".encode()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yesterday]:
    keys = DkimKeys.made(tmp_path_factory.mktemp("dkim"), {("example.test", "s1"): "ed25519"})
    with Remotes() as remotes:
        remotes.start("a.test")
        remotes.start("b.test", rcpt={"nobody@b.test": "550 5.1.1 No such user here"})
        remotes.start("c.test", greylist=True)
        remotes.start("d.test", rcpt={"full@d.test": "452 4.2.2 Mailbox full"})
        config = {"delivery": {"retry": [0.2, "1h"]}, **keys.config}
        relay = remotes.relay(config=config, policies={"10-hold.toml": HOLD})
        with (relay.folder / "accounts.toml").open("a") as accounts:
            accounts.write(ALIAS)
        with relay:
            yield Yesterday(relay, filled(relay))


def filled(relay: RelayProcess) -> dict[str, str]:
    ids = {
        subject: relay.submit(ALICE, [to], content(subject, message_id))
        for subject, to, message_id in (
            ("Bounced", "nobody@b.test", ""),
            ("Deferred", "full@d.test", ""),
            ("Contract 12", "ann@a.test", ""),
            ("Forwarded", "shop@example.test", ""),
            ("Late", "slow@c.test", ""),
            ("Signed", "spam@a.test", ""),
            ("Twice", "tom@a.test", "<twice@example.test>"),
        )
    }
    ids["Twice again"] = relay.submit(
        ALICE, ["tom@a.test"], content("Twice again", "<twice@example.test>")
    )
    ids["From outside"] = relay.submit(
        "eve@far.test", [BOB], content("From outside"), source=STRANGER
    )
    with relay.smtp(source=STRANGER) as client:
        client.ehlo()
        client.mail("eve@far.test")
        assert client.rcpt("victim@elsewhere.test")[0] == 550
    graph_id = relay.send_mail(to=["ben@a.test"], subject="By HTTP", token="bob")
    ids["By HTTP"] = relay.until_final(graph_id)["id"]
    for subject in ("Bounced", "Late", "Signed", "Forwarded", "Twice", "Twice again"):
        relay.until_final(ids[subject])
    relay.until_state(ids["Contract 12"], "held")
    until(
        "it waits for its second retry",
        lambda: len(relay.journey(ids["Deferred"])["recipients"][0]["attempts"]) > 1,
    )
    return ids


@pytest.fixture(scope="module", params=["running", "stopped"])
def mail(request: pytest.FixtureRequest, site: Yesterday) -> Yesterday:
    """The same answers come from the relay, and from its files."""
    if request.param == "stopped":
        site.relay.stop()
    return site


def test_1_was_it_refused(mail):
    (line,) = mail.asked("trace", "victim@elsewhere.test")
    assert f"{STRANGER}  refused 550 5.7.1 eve@far.test -> victim@elsewhere.test" in line


def test_2_is_it_deferred(mail):
    line = mail.line("--state", "deferred", subject="Deferred")
    assert re.search(
        r"next attempt \d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ  452 4\.2\.2 Mailbox full", line
    )
    assert "452 4.2.2" in "\n".join(mail.asked("queue", "list", "--state", "deferred"))


def test_3_did_it_bounce(mail):
    line = mail.line("--state", "failed", "--from", "alice", subject="Bounced")
    assert f"{ALICE} -> nobody@b.test" in line
    assert line.endswith("550 5.1.1 No such user here")


def test_4_is_it_held_and_by_what(mail):
    mail.line("--state", "held", subject="Contract 12")
    listed = "\n".join(mail.asked("queue", "list", "--state", "held"))
    assert 'held by rule "contracts are read first": waits for legal' in listed


def test_5_was_it_forwarded_and_where_to(mail):
    lines = "\n".join(mail.asked("trace", "shop@example.test"))
    assert "shop@example.test  redirected  to ann@a.test" in lines
    mail.line("--to", "shop@example.test", subject="Forwarded")


def test_6_was_it_sent_twice(mail):
    twice = ["Twice again", "Twice"]
    lines = mail.asked("log", "--message-id", "<twice@example.test>")
    assert [subject for line in lines for subject in twice if f'"{subject}"' in line] == twice
    command = "relay log --message-id '<twice@example.test>'"
    assert f"1 more message: {command}" in mail.asked("trace", mail.ids["Twice"])
    for one in (mail.ids["Late"], "last"):
        assert not any("more message" in line for line in mail.asked("trace", one))


def test_7_why_was_it_late(mail):
    lines = "\n".join(mail.asked("trace", "slow@c.test"))
    assert re.search(
        r" 6 delivery +\S+Z  (\[\S+\]  )?slow@c\.test deferred by mx\.c\.test: 45", lines
    )
    assert re.search(
        r" 6 delivery +\S+Z  (\[\S+\]  )?slow@c\.test relayed by mx\.c\.test: 250", lines
    )


def test_8_why_is_it_in_their_spam_folder(mail):
    """The host took it, and what it could judge by: the signature, and how it came."""
    lines = "\n".join(mail.asked("trace", "spam@a.test"))
    assert "signed for example.test (s1)" in lines
    assert "spam@a.test relayed by mx.a.test: 250" in lines


def test_9_what_came_from_this_address(mail):
    lines = mail.asked("trace", STRANGER)
    assert len(lines) == 2
    assert f'eve@far.test -> {BOB}  "From outside"' in lines[0]
    assert "refused 550" in lines[1]
    mail.line("--client", "127.0.0.2", subject="From outside")
    for client in ("127.0.*", "127.0.0.0/8"):
        everything = mail.asked("log", "--client", client)
        assert len(everything) == len(mail.ids), client
    assert mail.asked("log", "--client", "127.0.0.2/32") == mail.asked("log", "--client", STRANGER)
    assert [line for line in everything if "By HTTP" in line]  # the submission log has its client
    document = mail.relay.cli_json("trace", STRANGER)
    (row,) = document["messages"]
    assert (row["id"], row["client"]["address"]) == (mail.ids["From outside"], STRANGER)
    assert [one["command"] for one in document["refused"]] == ["RCPT"]


def test_conditions_are_joined(mail):
    assert mail.asked("log", "--to", "ann@a.test", "--subject", "signed") == []
    mail.line("--to", "@b.test", "--from", "alice", subject="Bounced")
    assert mail.asked("log", "--login", "alice") == []  # of a trusted network, nobody logged in
    mail.line("--login", BOB, "--since", "today", subject="By HTTP")
    for address in (ALICE, "alice@*"):
        assert len(mail.asked("log", "--address", address)) == len(mail.ids) - 2
    (row,) = mail.relay.cli_json("log", "--message-id", mail.ids["Bounced"])
    recipients = [{"address": "nobody@b.test", "state": "failed"}]
    assert (row["state"], row["recipients"], row["login"]) == ("failed", recipients, "")
    assert row["reply"] == "550 5.1.1 No such user here"


def test_all_rows_come_page_by_page(mail, monkeypatch):
    monkeypatch.setattr(operator_client, "_PAGE_ROWS", 3)
    settings = load(mail.relay.config_file, {})
    client = operator_client.OperatorClient(settings, SystemClock())
    assert [row["id"] for row in client.log_rows({})] == sorted(mail.ids.values(), reverse=True)


def test_a_condition_that_is_not_looked_at_is_no_empty_answer(mail):
    for words, text in (
        (("log", "--client", "10.0.0.1/8"), "--client: found '10.0.0.1/8', expected networks such"),
        (
            ("search", "Zebra"),
            "a service searches no texts here; there are from:, to:, subject:",
        ),
        (("search", "is:unread"), "a service searches no texts here"),
    ):
        done = mail.relay.cli(*words)
        if "search" in words and done.returncode == UNAVAILABLE:
            continue  # the relay is stopped
        assert (done.returncode, text in done.stderr) == (USAGE, True), done.stderr


PRINTED = re.compile(
    r"\b(?:\d{4}-\d\d-\d\d[T ])?\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z| UTC)?|\b\d{4}-\d\d-\d\d\b"
)


def test_each_time_that_a_command_prints_is_taken_by_log(mail):
    mail.asked("pause", "accept", "--until", "2h")
    texts = ["2026-11-30 12:08:46 UTC", *mail.asked("resume"), *mail.asked("trace", STRANGER)]
    for words in (("log",), ("queue", "list"), ("queue", "stats"), ("explain", BOB)):
        texts += [*mail.asked(*words), *mail.asked(*words, "--json")]
    for subject in ("Deferred", "Contract 12", "Late"):
        texts += mail.asked("trace", mail.ids[subject])
    forms = {re.sub(r"\d", "0", text): text for text in PRINTED.findall("\n".join(texts))}
    assert len(forms) >= 7, forms
    for text in forms.values():
        done = mail.relay.cli("log", "--since", text)
        assert done.returncode == OK, (text, done.stderr)
        (since,) = re.findall(r"^relay log: since (\S+ \S+)Z$", done.stderr, re.MULTILINE)
        assert re.split(r"[.Z]| UTC", text)[0].replace("T", " ") in since
    refused = mail.relay.cli("log", "--until", "2 h ago")
    assert "Error: --until: found '2 h ago', expected a duration" in refused.stderr


def test_what_is_left_out_is_said_with_the_way_to_it(mail):
    seen, words = [], []
    for _ in range(len(mail.ids)):
        done = mail.relay.cli("log", "--limit", "3", *words)
        lines = done.stdout.splitlines()
        seen += [line.split()[2] for line in lines if line.split()[2] not in seen]
        said = [line for line in done.stderr.splitlines() if "messages back to" in line]
        if not said:
            break
        assert said[0].startswith(f"relay log: {len(lines)} messages back to")
        words = said[0].split()[-2:]
        assert words[0] == "--until"
    assert seen == sorted(mail.ids.values(), reverse=True)
    rows = mail.relay.cli_json("log")
    assert [row["id"] for row in rows] == seen
    traced = mail.asked("trace", ALICE)
    assert f"{len(mail.ids) - 3} more messages: relay log --address {ALICE}" in traced
