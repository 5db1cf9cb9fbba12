"""Mail of the machine's programs while the relay is down: the drop directory, and hostile files in it.

The relay runs as one user, programs as another one, so these tests are for root.
"""

import fcntl
import json
import os
import pwd
import re
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import tempfile
from collections import Counter
from contextlib import closing
from email import message_from_bytes
from pathlib import Path

import pytest

from relay.base.crashpoints import CrashPoint
from relay.transport.ingress.dropped_mail import DroppedFile, HostileFileError
from relay.transport.ingress.maildrop import FILES_MAX
from tests.support import relay_starts
from tests.support.relay_config import account
from tests.support.relay_process import RelayProcess, until
from tests.support.tables import each_row

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")
HOST = "relay.example.test"
STUCK = '"stays" cannot be removed: Operation not permitted'
KEYED = re.compile("[0-9a-z]{16}-[0-9a-f]{32}").fullmatch
NOBODY, OWNER = (pwd.getpwnam(name).pw_uid for name in ("nobody", "daemon"))


@pytest.fixture
def drop():
    folder = Path(tempfile.mkdtemp(prefix="relay-drop-"))
    os.chown(folder, OWNER, OWNER)
    folder.chmod(0o3733)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def relay(drop):
    """A relay of the user daemon that does not run yet."""
    # As another user it may not start a process of the Python of root.
    sendmail = {"socket": "submit.sock", "drop": str(drop)}
    config = {"smtp_gate": "off", "sendmail": sendmail}
    relay = RelayProcess(config=config, accounts=[account("full", quota_messages=1)])
    relay.user = OWNER
    relay.folder.chmod(0o755)
    yield relay
    relay.close()


def sendmail(relay, text, *words, user=NOBODY):
    environment = {**relay.environment, "RELAY_CONFIG": str(relay.config_file)}
    command = [*relay_starts.RELAY, "sendmail", *words]
    return relay_starts.run(command, cwd=relay.folder, env=environment, stdin=text, user=user)


def inbox(relay):
    return [message_from_bytes(one.as_bytes()) for one in relay.maildir("bob")]


def subjects(relay):
    return sorted(one["Subject"] for one in inbox(relay))


def write(drop, name, subject="x", *, user=NOBODY, mode=0o640, sender="", octets=None, **envelope):
    """Write a file as the user would."""
    path = drop / name
    line = json.dumps({"sender": sender, "recipients": ["bob"], **envelope}) + "\n"
    usual = line.encode() + f"Subject: {subject}\r\n\r\nx\r\n".encode()
    path.write_bytes(usual if octets is None else octets)
    os.chown(path, user, OWNER)
    path.chmod(mode)
    return path


def left(drop):
    return sorted(one.name for one in drop.iterdir() if one.name != "aside")


def test_a_message_waits_for_the_start(relay, drop):
    done = sendmail(relay, "To: bob\nSubject: late\n\nx\n", "-t", "-i", "-F", "No Body")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    [file] = drop.iterdir()
    facts = file.stat()
    assert (facts.st_uid, facts.st_gid, stat.S_IMODE(facts.st_mode)) == (NOBODY, OWNER, 0o640)
    relay.start()
    until("taken", lambda: subjects(relay) == ["late"] and not left(drop))
    [mail] = inbox(relay)
    assert mail["Return-Path"] == f"<nobody@{HOST}>"
    assert mail["From"] == f"No Body <nobody@{HOST}>"
    assert relay.metric("relay_messages_accepted_total", via="sendmail") == 1
    assert sendmail(relay, "Subject: now\n\nx\n", "bob").returncode == 0
    until("by the socket", lambda: subjects(relay) == ["late", "now"])
    relay.stop()
    assert sendmail(relay, "Subject: again\n\nx\n", "bob").returncode == 0
    (drop / ".unfinished").touch()
    listed = sendmail(relay, "", "-bp", user=0)
    assert listed.stdout == "Mail queue is empty\n"
    assert listed.stderr == f"relay mailq: 1 message not taken yet in {drop}\n"
    (drop / ".unfinished").unlink()
    relay.start()
    until("taken", lambda: subjects(relay) == ["again", "late", "now"])
    assert relay.faults() == []


def test_a_backup_has_what_was_left_and_a_restoration_holds_it(relay, drop, tmp_path):
    assert sendmail(relay, "Subject: left\n\nx\n", "bob").returncode == 0
    write(drop, "closed", mode=0o600)
    [kept] = [drop / name for name in left(drop) if name != "closed"]
    facts, octets = kept.stat(), kept.read_bytes()
    assert relay.cli("backup", str(tmp_path / "copy")).returncode == 0
    for folder in (relay.folder / "state", relay.folder / "mail", drop):
        for one in folder.iterdir():
            one.unlink()
    command = [*relay_starts.RELAY, "restore", str(tmp_path / "copy"), "--yes"]
    done = relay_starts.run(command, cwd=tmp_path, env=relay.environment)
    assert done.returncode == 0, done.stderr
    held = drop / "aside" / kept.name
    assert (list(drop.rglob("*")), held.read_bytes()) == ([held.parent, held], octets)
    assert (held.parent.stat().st_uid, held.parent.stat().st_mode) == (OWNER, 0o40700)
    there = held.stat()
    assert (there.st_uid, there.st_mode) == (facts.st_uid, facts.st_mode) == (NOBODY, 0o100640)
    relay.start()
    assert subjects(relay) == []
    held.rename(kept)
    until("taken", lambda: subjects(relay) == ["left"])
    relay.stop()
    for folder in (relay.folder / "state", relay.folder / "mail"):
        shutil.rmtree(folder)
    done = relay.cli("restore", str(tmp_path / "copy"))  # with a configuration of its own
    path = tmp_path / "copy/config" / held.relative_to("/")
    assert done.returncode == 65, done
    assert f"not restored, mail of the drop directory: {path}\n" in done.stderr
    assert (path.read_bytes(), held.exists()) == (octets, False)


def test_a_relay_that_takes_no_mail_now_gets_it_later(relay, drop):
    """By a rule's defer after the content too, unless that is a limit of the sender."""
    (rules := relay.folder / "policies/10-later.toml").write_text(
        '[[rule]]\nname = "a"\nwhen = { subject = "later" }\nthen = [ { defer = "4.3.2 later" } ]\n'
        '[[rule]]\nname = "b"\nwhen = { subject = "limit" }\nthen = [ { defer = "4.7.1 slower" } ]\n'
    )
    relay.write_config(relay.config | {"pressure": {"memory": "20 MiB"}})
    with relay:
        done = sendmail(relay, "Subject: too full\n\nx\n", "bob")
        assert (done.returncode, done.stderr) == (0, "")
        assert len(left(drop)) == 1
        relay.stop()
        relay.write_config(relay.config)
        relay.start()
        until("taken", lambda: subjects(relay) == ["too full"])
        done = sendmail(relay, "Subject: limit\n\nx\n", "bob")
        assert (done.returncode, left(drop)) == (75, [])
        done = sendmail(relay, "Subject: later\n\nx\n", "bob")
        assert (done.returncode, done.stderr, len(left(drop))) == (0, "", 1)
        relay.stop()
        rules.unlink()
        relay.start()
        until("taken", lambda: subjects(relay) == ["later", "too full"])


def test_a_recipient_that_is_refused_for_now_is_in_the_queue(relay, drop):
    with relay:
        assert sendmail(relay, "Subject: first\n\nx\n", "full").returncode == 0
        until("full", lambda: relay.maildir("full"))
        done = sendmail(relay, "Subject: all\n\nx\n", "bob", "full")
        assert (done.returncode, done.stderr) == (0, "")
        until("taken", lambda: subjects(relay) == ["all"])
        listed = relay.cli("--json", "queue", "list").stdout
        [entry] = json.loads(listed)
        assert ("full@example.test", "deferred") in [
            (one["address"], one["state"]) for one in entry["recipients"]
        ]


def test_a_start_takes_all_whatever_else_is_there(relay, drop):
    """Many files and a large one, others that are being written, and directories, which stay."""
    text = "Subject: large\n\n" + "0123456789abcdef\n" * 200_000
    assert sendmail(relay, text, "bob").returncode == 0
    for number in range(FILES_MAX + 1):
        (drop / f".{number}").touch()
    os.utime(write(drop, ".late", mode=0o600), (4e9, 4e9))
    for name in ("00", ".begun"):
        (drop / name).mkdir()
        (drop / name / "full").touch()
        os.chown(drop / name, NOBODY, OWNER)
        os.utime(drop / name, (0, 0))
    for number in range(50):
        write(drop, f"{number}", f"{number:02}")
    relay.start()
    until("all", lambda: subjects(relay) == [*(f"{one:02}" for one in range(50)), "large"])
    until("removed", lambda: [one for one in left(drop) if one[0] != "."] == ["00"])
    [large] = [one for one in inbox(relay) if one["Subject"] == "large"]
    assert len(large.get_payload().splitlines()) == 200_000
    assert "dropped file" not in relay.log
    assert relay.cli("pause", "accept").returncode == 0
    done = sendmail(relay, "Subject: paused\n\nx\n", "bob")
    assert (done.returncode, done.stderr) == (0, "")
    assert relay.cli("resume", "accept").returncode == 0
    until("taken", lambda: "paused" in subjects(relay))
    assert relay.faults() == []


def test_a_recipient_that_does_not_exist_is_reported(relay, drop):
    words = ["-f", "alice@example.test", "-V", "order-17", "nobody-here"]
    assert sendmail(relay, "Subject: who\n\nx\n", *words, user=0).returncode == 0
    relay.start()
    [report] = until("reported", lambda: relay.maildir("alice"))
    assert "Original-Envelope-Id: order-17" in str(report)
    until("removed", lambda: not left(drop))


def test_hostile_files_are_put_aside(relay, drop, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text('{"sender": "", "recipients": ["bob"]}\nSubject: secret\r\n\r\nx\r\n')
    secret.chmod(0o640)
    os.chown(secret, OWNER, OWNER)
    (drop / "link").symlink_to(secret)
    (drop / "dangling").symlink_to("/nowhere")
    os.link(write(drop, "one", "two names"), drop / "two")
    os.mkfifo(drop / "fifo", 0o640)
    (made := socket.socket(socket.AF_UNIX)).bind(str(drop / "socket"))
    made.close()
    write(drop, "closed", mode=0o600)
    write(drop, "open", mode=0o666)
    write(drop, "setuid", mode=0o4640)
    write(drop, "nothing", octets=b"")
    write(drop, "text", octets=b"Subject: no envelope\r\n\r\nx\r\n")
    write(drop, "unknown", more=1)
    write(drop, "nobody", recipients=[])
    write(drop, "address", recipients=["a b@c"])
    write(drop, "many", recipients=[f"a{one}@b.test" for one in range(1001)])
    write(drop, "forged", "forged", sender="alice@example.test")
    write(drop, "bare", octets=b'{"sender": "", "recipients": ["bob"]}\nSubject: a\n\nx\n')
    write(drop, "notify", notify="often")
    write(drop, "envid", envid="a b")
    with write(drop, "huge").open("r+b") as huge:
        huge.truncate(100_000_001)
    header = b'{"sender": "", "recipients": ["bob"]}\nFrom: alice@example.test\r\n\r\nx\r\n'
    write(drop, "header", octets=header)
    os.utime(write(drop, ".begun", mode=0o600), (0, 0))
    write(drop, ".writing", mode=0o600)
    for name in (b"\xff", b"a\nb", b"\x1b[2J", b"x" * 255):
        write(drop, "name", mode=0o666).rename(drop / os.fsdecode(name))
    hostile = len(left(drop)) - 1
    write(drop, "zz", "honest")
    relay.start()
    until("the honest one", lambda: subjects(relay) == ["honest"])
    until("the others", lambda: left(drop) == [".writing"])
    assert len(list((drop / "aside").iterdir())) == hostile
    assert stat.S_IMODE((drop / "aside").stat().st_mode) & 0o777 == 0o700
    assert subjects(relay) == ["honest"]
    assert secret.exists()
    assert relay.log.count("dropped file moved aside") == 10
    assert relay.log.count("others are not logged") == 1
    assert relay.faults() == []


def test_who_fills_the_directory_aside_has_no_place_of_another_user(relay, drop):
    (aside := drop / "aside").mkdir(0o700)
    os.chown(aside, OWNER, OWNER)
    for number in range(1000):
        (aside / f"{number}").touch()
        os.chown(aside / f"{number}", NOBODY, OWNER)
    write(drop, "more", mode=0o666)
    write(drop, "lost", mode=0o666, user=OWNER)
    relay.start()
    until("both are taken", lambda: left(drop) == [])
    assert Counter(one.stat().st_uid for one in aside.iterdir()) == {NOBODY: 1000, OWNER: 1}
    assert relay.log.count("dropped file removed") == relay.log.count("dropped file moved") == 1


def test_a_directory_in_place_of_a_listed_file_is_hostile(drop):
    (drop / "made-late").mkdir()
    with pytest.raises(HostileFileError, match="Is a directory"):
        DroppedFile(drop / "made-late")


def test_a_file_that_cannot_be_opened_ends_no_round(relay, drop):
    """Its owner has a lease, so that open(2) would have to wait."""
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # sent when the lease is broken
    leased = os.open(write(drop, "00", "leased"), os.O_WRONLY)
    try:
        fcntl.fcntl(leased, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        write(drop, "good", "good")
        relay.start()
        until("taken", lambda: subjects(relay) == ["good"])
        until("removed", lambda: left(drop) == ["00"])
        ready = until("named", lambda: ready_text(relay) if "/00" in ready_text(relay) else "")
        assert "Resource temporarily unavailable" in ready
    finally:
        os.close(leased)
        signal.signal(signal.SIGIO, before)


def test_a_file_that_changes_while_it_is_read_is_hostile(drop):
    path = write(drop, "changes")
    with closing(DroppedFile(path)) as file:
        assert file.read(3) == b"Sub"
        with path.open("r+b") as other:  # "a" would create: fs.protected_regular refuses it
            other.seek(0, os.SEEK_END)
            other.write(b"more")
        with pytest.raises(HostileFileError, match="changed while it was read"):
            file.read(3)


def test_aside_may_not_be_somebody_elses(relay, drop, tmp_path):
    (drop / "aside").symlink_to(tmp_path)
    tmp_path.chmod(0o777)
    write(drop, "bad", mode=0o666)
    write(drop, "good", "good")
    relay.start()
    until("the honest one", lambda: subjects(relay) == ["good"])
    until("removed", lambda: left(drop) == ["bad"])
    assert list(tmp_path.iterdir()) == []
    ready = until("named", lambda: ready_text(relay) if "bad" in ready_text(relay) else "")
    assert "is not a directory of the relay alone" in ready
    assert "moved aside" not in relay.log


def ready_text(relay):
    answer = relay.request("GET", "/readyz")
    assert answer.status == 200
    return answer.body.decode()


def test_a_file_that_cannot_be_removed_is_sent_once_and_named(relay, drop):
    os.chown(drop, 0, OWNER)
    drop.chmod(0o3773)  # sticky: only its owner removes a file
    write(drop, "stays", "stays")
    relay.start()
    until("delivered", lambda: subjects(relay) == ["stays"])
    until("named", lambda: STUCK in ready_text(relay))
    relay.restart()
    until("named", lambda: STUCK in ready_text(relay))
    write(drop, "zz-next", "next")
    until("the next", lambda: subjects(relay) == ["next", "stays"])
    os.chown(drop, OWNER, OWNER)
    until("removed", lambda: not left(drop))
    until("ready", lambda: "cannot be removed" not in ready_text(relay))
    assert subjects(relay) == ["next", "stays"]
    assert relay.metric("relay_messages_accepted_total", via="sendmail") == 1


def test_a_kill_between_acceptance_and_removal_sends_once(relay, drop):
    write(drop, "once", "once")
    relay.start(crash_at=CrashPoint.DROP_ACCEPTED, wait=False)
    assert relay.wait_end() == -signal.SIGKILL
    assert left(drop) == ["once"]
    relay.start()
    until("removed", lambda: not left(drop))
    until("delivered", lambda: subjects(relay))
    assert subjects(relay) == ["once"]
    assert relay.metric("relay_messages_accepted_total", via="sendmail") == 0


@pytest.mark.parametrize("point", [CrashPoint.SPOOL_BEFORE_COMMIT, CrashPoint.SPOOL_COMMITTED])
def test_a_kill_before_the_reply_sends_once(relay, drop, point):
    """Also if the next relay dies once it has taken the file; a refused recipient is told at once."""
    relay.start(crash_at=point)
    words = ["-f", "alice@example.test", "bob", "gone"]
    done = sendmail(relay, "Subject: once\n\nx\n", *words, user=0)
    assert relay.wait_end() == -signal.SIGKILL
    [name] = left(drop)
    assert done.returncode == 0
    assert done.stderr.startswith("sendmail: 550 5.1.1 <gone@example.test>")
    assert done.stderr.count("\n") == 1
    relay.start(crash_at=CrashPoint.DROP_ACCEPTED, wait=False)
    assert relay.wait_end() == -signal.SIGKILL
    assert left(drop) == [name]
    relay.start()
    until("removed", lambda: not left(drop))
    until("delivered", lambda: subjects(relay))
    assert subjects(relay) == ["once"]
    is_known = point is CrashPoint.SPOOL_COMMITTED
    until("reported", lambda: is_known or relay.maildir("alice"))
    assert relay.faults() == []


KEY = "0123456789abcdef" * 2


def keyed(relay, key, *, user=NOBODY, subject="first"):
    """Send as a program that speaks SMTP itself; return the replies."""
    lines = ["EHLO x", f"MAIL FROM:<> XRELAYKEY={key}", "RCPT TO:<bob>", "DATA"]
    lines += [f"Subject: {subject}", "", "x", ".", "QUIT", ""]
    return sendmail(relay, "\n".join(lines), "-bs", user=user).stdout.splitlines()


def test_a_key_is_its_users_and_of_this_socket_only(relay, drop):
    with relay:
        replies = keyed(relay, KEY)
        assert "250-XRELAYKEY" in replies
        until("delivered", lambda: subjects(relay) == ["first"])
        again = keyed(relay, KEY, subject="again")
        assert [one for one in again if "queued as" in one] == [replies[-2]]
        assert "501 5.5.4 XRELAYKEY: expected 32 hexadecimal digits" in keyed(relay, KEY.upper())
        write(drop, f"0-{KEY}", "again")
        write(drop, f"1-{KEY}", "another's", user=0)
        until("taken", lambda: not left(drop))
        until("delivered", lambda: subjects(relay) == ["another's", "first"])
        with relay.smtp() as client:
            client.ehlo()
            assert not client.has_extn("XRELAYKEY")
            assert client.docmd("MAIL", f"FROM:<> XRELAYKEY={KEY}")[0] == 555


def test_a_key_does_not_end_while_its_file_is_there(relay, drop):
    """A machine that was off for long: the directory is read before keys that have ended go."""
    with relay:
        keyed(relay, KEY)
        until("delivered", lambda: subjects(relay) == ["first"])
        assert relay.cli("pause", "accept").returncode == 0
        relay.stop()
        write(drop, f"0-{KEY}", "again")
        with closing(sqlite3.connect(relay.folder / "state/spool.sqlite")) as spool:
            with spool:
                spool.execute("INSERT INTO submission SELECT 'x', message_id, 0 FROM submission")
                assert spool.execute("UPDATE submission SET expires_us = 1").rowcount == 2
            relay.start()
            until(
                "pruned", lambda: spool.execute("SELECT key FROM submission").fetchall()[1:] == []
            )
        assert relay.cli("resume", "accept").returncode == 0
        until("taken", lambda: not left(drop))
        assert subjects(relay) == ["first"]


@pytest.fixture
def older(relay, drop, tmp_path):
    """A relay of 0.4.0 with the same folder, as root, which the sendmail of this tree meets."""
    tree = ["git", "-C", str(relay_starts.ROOT), "archive", "58e30772", "relay", "policies", "conf"]
    done = subprocess.run(tree, capture_output=True, check=False)
    if done.returncode:
        pytest.skip("the history lacks 0.4.0")
    subprocess.run(["tar", "-x", "-C", tmp_path], input=done.stdout, check=True)
    os.chown(drop, 0, 0)
    relay.user = 0
    here, there = relay.environment["PYTHONPATH"], str(tmp_path)

    def start(**options):
        relay._environment["PYTHONPATH"] = there
        relay.start(**options)
        relay._environment["PYTHONPATH"] = here

    return start


def test_a_relay_of_the_version_before_takes_the_mail(older, relay, drop):
    assert sendmail(relay, "Subject: left\n\nx\n", "bob").returncode == 0
    assert KEYED(left(drop)[0])
    older()
    until("taken", lambda: not left(drop))
    assert sendmail(relay, "Subject: now\n\nx\n", "bob").returncode == 0
    assert any(one.startswith("555 ") for one in keyed(relay, KEY))
    until("delivered", lambda: subjects(relay) == ["left", "now"])
    relay.stop()
    older(crash_at=CrashPoint.SPOOL_COMMITTED)
    done = sendmail(relay, "Subject: unknown\n\nx\n", "bob")
    assert (done.returncode, left(drop)) == (75, [])


@each_row(
    "text, words, said",
    [
        ("Subject: x\n\n" + "0123456789abcdef\n" * 5_600_000, [], "552 5.3.4 "),
        ("Subject: x\n\nx\n", ["-f", "alice@example.test"], "553 5.7.1 <alice@example.test>: "),
        ("Subject: x\n\nx\n", [f"a{one}" for one in range(1000)], "found 1001 recipients"),
    ],
)
def test_what_would_be_refused_is_not_left(relay, drop, text, words, said):
    done = sendmail(relay, text, *words, "bob")
    assert (done.returncode, left(drop)) == (65, [])
    assert done.stderr.startswith(f"sendmail: {said}")
    assert done.stderr.count("\n") == 1


def test_what_is_left_without_a_relay(relay, drop):
    """Mail of root from any address; nobody's where other sections have a fault, such as a password
    that only the service can read; none in a directory that takes no mail.
    """
    for words in (["-f", "shop@x.test"], ["-f", "<>"], ["-f", f"ROOT@{HOST}"]):
        assert sendmail(relay, "Subject: x\n\nx\n", *words, "bob", user=0).returncode == 0
    assert len(left(drop)) == 3
    (secret := relay.folder / "secret").write_text("secret")
    secret.chmod(0o600)
    auth = {"user": "a", "password_file": str(secret)}
    route = {"domain": "*", "next_hop": "a.test", "tls": "verify", "auth": auth}
    relay.write_config({**relay.config, "route": [route], "delivery": {"unknown": 1}})
    done = sendmail(relay, "Subject: x\n\nx\n", "bob")
    assert (done.returncode, done.stderr, len(left(drop))) == (0, "", 4)
    place = relay.folder / "submit.sock"
    with socket.socket(socket.AF_UNIX) as stuck, socket.socket(socket.AF_UNIX) as other:
        stuck.bind(str(place))
        place.chmod(0o666)
        stuck.listen(0)  # with one in the line it is full
        other.connect(str(place))
        done = sendmail(relay, "Subject: x\n\nx\n", "bob")
        assert (done.returncode, done.stderr, len(left(drop))) == (0, "", 5)
    drop.chmod(0o700)
    done = sendmail(relay, "Subject: x\n\nx\n", "bob")
    assert (done.returncode, len(left(drop))) == (75, 5)
    said = (
        f"sendmail: {drop} does not take mail: .*\nsendmail: no relay answers at unix:{place}: .*\n"
    )
    assert re.fullmatch(said, done.stderr)


def test_a_fault_in_what_it_needs_is_named_and_mail_is_left(relay, drop):
    text = relay.config_file.read_text()
    relay.config_file.write_text(text.replace(f'hostname = "{HOST}"', "hostname = 1"))
    assert relay.config_file.read_text() != text
    done = sendmail(relay, "Subject: x\n\nx\n", "bob")
    assert (done.returncode, len(left(drop))) == (0, 1)
    assert done.stderr.count("\n") == 1
    assert "hostname: found 1" in done.stderr
    assert done.stderr.endswith("; this [sendmail] is used\n")


@pytest.mark.skipif(Path("/var/spool/relay/maildrop").exists(), reason="the default is in use")
def test_a_configuration_that_cannot_be_parsed_leaves_the_defaults(relay, drop):
    with relay.config_file.open("a") as config:
        config.write("\n[half")
    done = sendmail(relay, "Subject: x\n\nx\n", "bob")
    first, second, third = done.stderr.splitlines()
    assert first.endswith("; the default [sendmail] is used")
    assert second.startswith("sendmail: /var/spool/relay/maildrop does not take mail: ")
    assert third.startswith("sendmail: no relay answers at unix:/run/relay/submit.sock: ")
    assert done.returncode == 75
