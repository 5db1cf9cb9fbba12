"""Mail of the machine's programs, by the socket of [sendmail]: who may send as whom.

The kernel names the user, so these tests are for root, who can become another one.
"""

import json
import os
import pwd
from email import message_from_bytes

import pytest

from tests.support import relay_starts
from tests.support.relay_process import RelayProcess, until
from tests.support.tables import each_row

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")
HOST = "relay.example.test"
NOBODY, DAEMON = (pwd.getpwnam(name).pw_uid for name in ("nobody", "daemon"))


@pytest.fixture(scope="module")
def relay():
    sendmail = {"socket": "submit.sock", "users": ["daemon"], "drop": ""}
    config = {"sendmail": sendmail, "limits": {"recipients": "2/1d"}}
    with RelayProcess(config=config) as relay:
        relay.folder.chmod(0o755)
        yield relay


@pytest.fixture
def sendmail(relay):
    """Run `relay sendmail` as a user."""

    def run(text, *words, user, verb="sendmail", **variables):
        environment = {**relay.environment, "RELAY_CONFIG": str(relay.config_file), **variables}
        command = [*relay_starts.RELAY, verb, *words]
        cwd = relay.folder
        return relay_starts.run(command, cwd=cwd, env=environment, stdin=text, user=user)

    return run


def arrived(relay, subject):
    """The mail with this subject in bob's inbox."""

    def found():
        every = (message_from_bytes(one.as_bytes()) for one in relay.maildir("bob"))
        return next((one for one in every if one["Subject"] == subject), None)

    return until(subject, found)


@each_row("words", [[], ["-f", "nobody"], ["-f", f"NOBODY@{HOST.upper()}"]])
def test_a_user_sends_as_user_at_hostname(relay, sendmail, words):
    subject = f"own {words}"
    done = sendmail(f"To: bob\nSubject: {subject}\n\nx\n", "-t", *words, user=NOBODY, USER="root")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    mail = arrived(relay, subject)
    assert mail["Return-Path"].lower() == f"<nobody@{HOST}>"
    assert mail["From"].lower() == f"nobody@{HOST}"
    assert mail["Received"].startswith("from nobody")
    assert mail["Message-ID"].endswith(f"@{HOST}>")


def test_localhost_is_this_machine(relay, sendmail):
    words = ["-t", "-f", "nobody@localhost"]
    assert sendmail("To: bob@localhost\nSubject: here\n\nx\n", *words, user=NOBODY).returncode == 0
    assert arrived(relay, "here")["Return-Path"] == f"<nobody@{HOST}>"


def test_cron_names_addresses_without_a_domain(relay, sendmail):
    fields = "From: root (Cron Daemon)\nSender: root\nReply-To: ops\nTo: bob\nResent-Cc: Al <al>\n"
    text = f"{fields}Subject: cron\n\nx\n"
    assert sendmail(text, "-i", "-FCronDaemon", "-oem", "bob", user=NOBODY).returncode == 0
    completed = {
        "From": f"Cron Daemon <nobody@{HOST}>",
        "Sender": f"nobody@{HOST}",
        "Reply-To": f"ops@{HOST}",
        "To": "bob@example.test",
        "Resent-Cc": "Al <al@example.test>",
    }
    assert completed.items() <= dict(arrived(relay, "cron").items()).items()
    relay.submit(
        "x@far.test",
        ["bob@example.test"],
        text.replace("\n", "\r\n").replace("cron", "far").encode(),
    )
    assert arrived(relay, "far")["From"] == "root (Cron Daemon)"
    assert sendmail("From: Logwatch\nTo: bob\nSubject: log\n\nx\n", "-t", user=0).returncode == 0
    assert arrived(relay, "log")["From"] == f"Logwatch@{HOST}"


@each_row(
    "words, header, found",
    [
        (["-f", "alice@example.test"], "", "<alice@example.test>:"),
        (["-f", "alice"], "", f"<alice@{HOST}>:"),
        ([], "From: alice@example.test\n", "<alice@example.test> in From"),
        ([], f"From: nobody@{HOST}\nSender: alice@example.test\n", "in Sender"),
        ([], f"From: nobody@{HOST}, alice@example.test\n", "<alice@example.test> in From"),
        ([], "From: alice, bob\n", "in From"),
        ([], f'From: "nobody@{HOST}" <alice@example.test>\n', "<alice@example.test> in From"),
    ],
)
def test_a_user_may_not_send_as_another_one(relay, sendmail, words, header, found):
    before = len(relay.maildir("bob"))
    done = sendmail(f"{header}Subject: forged\n\nx\n", *words, "bob", user=NOBODY)
    assert (done.returncode, done.stdout) == (65, "")
    assert "553 5.7.1" in done.stderr
    assert found in done.stderr
    assert "user nobody" in done.stderr
    assert "[sendmail] users" in done.stderr
    assert done.stderr.count("\n") == 1
    assert len(relay.maildir("bob")) == before


@pytest.mark.parametrize("user", [0, DAEMON], ids=["root", "in users"])
def test_root_and_trusted_users_send_from_any_address(relay, sendmail, user):
    text = f"From: The Shop <shop@x.test>\nSubject: any {user}\n\nx\n"
    assert sendmail(text, "-f", "shop@x.test", "bob", user=user).returncode == 0
    mail = arrived(relay, f"any {user}")
    assert mail["Return-Path"] == "<shop@x.test>"
    assert mail["From"] == "The Shop <shop@x.test>"


def test_the_null_path_is_for_all(relay, sendmail):
    assert sendmail("Subject: null\n\nx\n", "-f", "<>", "bob", user=NOBODY).returncode == 0
    mail = arrived(relay, "null")
    assert (mail["Return-Path"], mail["From"]) == ("<>", f"nobody@{HOST}")


def test_it_is_not_a_way_to_log_in(relay, sendmail):
    lines = ["EHLO a", "AUTH PLAIN AGFsaWNlAGFsaWNl", "MAIL FROM:<alice@example.test>", "QUIT", ""]
    done = sendmail("\n".join(lines), "-bs", user=NOBODY)
    codes = [line[:3] for line in done.stdout.splitlines() if line[3:4] == " "]
    assert codes == ["220", "250", "502", "553", "221"]


def test_without_a_drop_nobody_listens_is_75(relay, sendmail, tmp_path):
    config = tmp_path / "relay.toml"
    config.write_text(relay.config_file.read_text().replace("submit.sock", "none.sock"))
    (tmp_path / "accounts.toml").touch()
    done = sendmail("Subject: x\n\nx\n", "bob", user=0, RELAY_CONFIG=str(config))
    assert done.returncode == 75
    assert "no relay answers at unix:" in done.stderr


def test_mailq_lists_the_queue(relay, sendmail):
    empty = sendmail("", user=0, verb="mailq")
    assert (empty.returncode, empty.stdout) == (0, "Mail queue is empty\n")
    assert sendmail("Subject: q\n\nx\n", "a@b.test", user=NOBODY).returncode == 0
    listed = sendmail("", "-bp", user=0).stdout
    until("an attempt", lambda: "(" in sendmail("", user=0, verb="mailq").stdout)
    assert f"  nobody@{HOST}\n" in listed
    assert " " * 40 + "a@b.test\n" in listed
    assert listed.endswith("-- 1 Kbytes in 1 Request.\n")


def test_mailq_of_another_user_says_how_to_see_the_queue(relay, sendmail):
    (relay.folder / "closed").mkdir(mode=0o700)
    away = relay.folder / "away.toml"  # no relay runs there
    away.write_text(f'hostname = "{HOST}"\nstate_dir = "closed"\n[sendmail]\n')
    modes = [(away, 0o644), (away, 0o640), (relay.config_file, 0o640), (relay.config_file, 0o644)]
    for file, mode in modes:
        file.chmod(mode)
        for verb, words in (("mailq", []), ("sendmail", ["-bp"])):
            done = sendmail("", *words, user=NOBODY, verb=verb, RELAY_CONFIG=str(file))
            assert (done.returncode, done.stdout, done.stderr.count("\n")) == (77, "", 1)
            assert done.stderr.endswith("sudo relay mailq\n")


def test_q_tries_the_queue_again(relay, sendmail):
    def attempts():
        listed = json.loads(sendmail("", "--json", user=0, verb="mailq").stdout)
        return sum(entry["attempts"] for entry in listed)

    assert sendmail("Subject: q\n\nx\n", "a@b.test", user=NOBODY).returncode == 0
    before = until("an attempt", attempts)
    assert sendmail("", "-q", user=0).returncode == 0
    until("another attempt", lambda: attempts() > before)


def test_a_user_has_the_limits_of_all_whatever_the_sender(relay, sendmail):
    """What is beyond them is kept by the program: it may try again."""

    def send(*to, sender=f"daemon@{HOST}"):
        return sendmail("Subject: x\n\nx\n", "-i", "-f", sender, *to, user=DAEMON)

    assert send("x@other.test", "bob", sender="carol@example.test").returncode == 0
    done = send("x@other.test", "y@other.test")
    assert (
        done.returncode,
        "2 recipients to other domains in 1d; try again after 20" in done.stderr,
    ) == (75, True)
    done = send("x@other.test", "y@other.test", "z@other.test")
    assert (done.returncode, "and this message has 3" in done.stderr) == (65, True)
    assert send("y@other.test").returncode == 0
    assert send("bob").returncode == 0
