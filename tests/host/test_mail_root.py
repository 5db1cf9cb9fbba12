"""The mail root is unmounted, covered or renamed while mail arrives; or another one is there at a start."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import apsw
import pytest

from relay.store.mailbox.mail_root import read_id
from tests.support.disks import covered, disk_of_its_own
from tests.support.graph_client import message
from tests.support.relay_process import RelayProcess, until

LOCAL = "bob@example.test"


def tree(path: Path) -> list[tuple[str, int, int]]:
    """All files and directories below a path, and what changes with their content."""
    return sorted(
        (str(one.relative_to(path)), one.lstat().st_size, one.lstat().st_ino)
        for one in path.rglob("*")
    )


def ready(relay: RelayProcess) -> tuple[int, str]:
    answer = relay.request("GET", "/readyz")
    return answer.status, answer.body.decode()


def until_missing(relay: RelayProcess) -> str:
    until("not ready", lambda: ready(relay)[0] == 503)
    return ready(relay)[1]


def until_back(relay: RelayProcess) -> None:
    until("ready again", lambda: ready(relay)[0] == 200)


@pytest.fixture
def mail(tmp_path: Path, serve) -> RelayProcess:
    return serve(config={"delivery": {"retry": ["1s"]}})


@contextmanager
def renamed(root: Path, by: Path) -> Iterator[None]:
    aside = root.with_name("aside")
    root.rename(aside)
    shutil.copytree(by, root)
    try:
        yield
    finally:
        shutil.rmtree(root)
        aside.rename(root)


@contextmanager
def gone(root: Path, _: Path) -> Iterator[None]:
    root.rename(root.with_name("aside"))
    try:
        yield
    finally:
        root.with_name("aside").rename(root)


WAYS = {"mounted over": covered, "renamed": renamed, "gone": gone}


@pytest.mark.parametrize(
    ("way", "old"), [("mounted over", "an old tree"), ("renamed", "nothing"), ("gone", "nothing")]
)
def test_mail_waits_while_the_root_is_missing(
    mail: RelayProcess, tmp_path: Path, way: str, old: str
) -> None:
    relay, root, other = mail, mail.folder / "mail", tmp_path / "other"
    relay.until_final(relay.send_mail(to=[LOCAL], subject="before"))
    if old == "nothing":
        other.mkdir()
    else:  # with the same id: it was copied when the disk was replaced
        relay.stop()
        shutil.copytree(root, other)
        relay.start()
    before = tree(other)
    with WAYS[way](root, other):
        at_once = relay.submit("carol@example.test", [LOCAL], b"Subject: at once\r\n\r\n")
        assert str(root) in until_missing(relay)
        refused = relay.graph("POST", "/me/sendMail", {"message": message(to=[LOCAL])})
        later = relay.submit("carol@example.test", [LOCAL], b"Subject: later\r\n\r\n")
        reading = relay.graph("GET", "/me/messages")
        for queue_id in (at_once, later):
            until(
                "deferred",
                lambda queue_id=queue_id: set(relay.states(queue_id).values()) == {"deferred"},
            )
        (reason,) = {one["reply"] for one in relay.queue() for one in one["recipients"]}
        if way != "gone":
            assert [one[0] for one in tree(root)] == [one[0] for one in before]
    assert (refused.status, reading.status) == (503, 503)
    assert int(refused.headers["retry-after"]) > 0
    assert reason == "451 4.3.0 The mail store cannot be used: its root is missing."
    until_back(relay)
    for queue_id in (at_once, later):
        relay.until_state(queue_id, "delivered")
    assert relay.subjects("bob") == ["at once", "before", "later"]
    relay.until_final(relay.send_mail(to=[LOCAL], subject="after"))
    assert tree(other) == before
    (missing,) = [one for one in relay.faults() if "mail root" in one]
    assert '"event":"the mail root is missing' in missing
    assert relay.log.count('"event":"the mail root is back"') == 1


def test_a_disk_that_is_mounted_again_is_used_without_a_restart(tmp_path: Path, serve) -> None:
    """As another mount, perhaps with another device number: index, log and lock are those of it."""
    relay = serve(config={"delivery": {"retry": ["1s"]}})
    root = relay.folder / "mail"
    relay.stop()
    with disk_of_its_own(root):
        relay.start()
        relay.until_final(relay.send_mail(to=[LOCAL], subject="before"))
        pending = relay.folder / "below"
        pending.mkdir()
        with covered(root, pending):
            until_missing(relay)
        until_back(relay)
        relay.until_final(relay.send_mail(to=[LOCAL], subject="after"))
        assert relay.subjects("bob") == ["after", "before"]
        found = relay.graph("GET", '/me/messages?$search="after"', token="bob").json()["value"]
        assert [one["subject"] for one in found] == ["after"]
        relay.stop()


def test_submissions_go_on_when_the_root_is_back(mail: RelayProcess, tmp_path: Path) -> None:
    """What was in preparation is removed."""
    relay, root = mail, mail.folder / "mail"
    relay.stop()
    relay.start(crash_at="request-answered:3")
    with suppress(OSError):  # the third is not answered
        for number in range(3):
            relay.send_mail(to=[LOCAL], subject=f"n{number}")
    relay.wait_end()
    ready_files, preparing = root / ".submissions/ready", root / ".submissions/preparing"
    assert list(ready_files.iterdir())
    relay.start()
    (preparing / "06gzg000000000a1.1").write_bytes(b"half")
    with gone(root, tmp_path):
        until_missing(relay)
    until_back(relay)
    until("sent", lambda: not list(ready_files.iterdir()))
    until("delivered", lambda: len(relay.subjects("bob")) == 3)
    until("nothing in progress", lambda: not [*preparing.iterdir()])


# -- at a start


def start_fails(relay: RelayProcess) -> tuple[int, list[str]]:
    """Return exit code and what was printed that is no log line."""
    relay.start(wait=False)
    code = relay.wait_end()
    return code, [line for line in relay.log.splitlines() if not line.startswith("{")]


def _empty(root: Path) -> None:
    root.rename(root.with_name("aside"))
    root.mkdir()


def _foreign(root: Path) -> None:
    (root / ".submissions/id").write_text("0123456789abcdef\n")


@pytest.mark.parametrize(("kept", "expected"), [(True, 0), (False, 78)])
def test_the_first_start_of_this_version_takes_the_root_that_was_used(
    mail: RelayProcess, kept: bool, expected: int
) -> None:
    """A spool that knows no root, as after a migration: it delivered here."""
    mail.until_final(mail.send_mail(to=[LOCAL], subject="before"))
    mail.stop()
    (mail.folder / "mail/.submissions/id").unlink()
    connection = apsw.Connection(str(mail.folder / "state/spool.sqlite"))
    connection.execute("DELETE FROM mail_root")
    connection.close()
    if not kept:
        shutil.rmtree(mail.folder / "mail/.submissions")
        assert start_fails(mail)[0] == expected
        return
    mail.start()
    mail.until_final(mail.send_mail(to=[LOCAL], subject="after"))
    assert mail.subjects("bob") == ["after", "before"]
    (mail.folder / "mail/.submissions/id").unlink()
    mail.stop()
    assert start_fails(mail)[0] == 78  # it is recorded


def refused(relay: RelayProcess) -> str:
    """What a start prints that takes no such root; nothing has changed in it."""
    before = sorted(relay.folder.glob("mail/**/*"))
    code, (*_, text) = start_fails(relay)
    assert (code, "mailboxes.root: " in text) == (78, True)
    assert sorted(relay.folder.glob("mail/**/*")) == before
    return text


@pytest.mark.parametrize(("change", "accepted"), [(_empty, "new"), (_foreign, "0123456789abcdef")])
def test_an_operator_adopts_another_root(
    mail: RelayProcess, change: Callable[[Path], None], accepted: str
) -> None:
    root = mail.folder / "mail"
    mail.until_final(mail.send_mail(to=[LOCAL], subject="before"))
    known = read_id(root)
    assert mail.cli("storage", "adopt", known, "--yes").returncode == 69  # it runs
    mail.stop()
    with gone(root, root):
        assert refused(mail).endswith("mounted?")
    change(root)
    wrong = mail.cli("storage", "adopt", known, "--yes")
    assert (wrong.returncode, "has " in wrong.stderr) == (65, True)
    unasked = mail.cli("storage", "adopt", accepted)
    assert (unasked.returncode, "--yes" in unasked.stderr) == (64, True)
    assert refused(mail).endswith(f"`relay storage adopt {accepted}` accepts it")
    done = mail.cli("storage", "adopt", accepted, "--yes", "--json")
    assert done.returncode == 0
    shown = {"path": str(root), "id": read_id(root), "before": known}
    assert json.loads(done.stdout) == shown
    assert f"known id   {known}" in done.stderr
    assert "mail root adopted" in done.stderr
    mail.start()
    mail.until_final(mail.send_mail(to=[LOCAL], subject="after"))
    assert mail.subjects("bob")[0] == "after"


def test_a_root_whose_disk_fails_at_the_start_is_opened_later(mail: RelayProcess) -> None:
    mail.until_final(mail.send_mail(to=[LOCAL], subject="before"))
    mail.stop()
    file = mail.folder / "mail/.submissions/id"
    file.rename(file.with_name("aside"))
    file.mkdir()  # an error that is not a missing file
    mail.start()
    assert "Is a directory" in until_missing(mail)
    queue_id = mail.submit("carol@example.test", [LOCAL], b"Subject: later\r\n\r\n")
    file.rmdir()
    file.with_name("aside").rename(file)
    until_back(mail)
    mail.until_state(queue_id, "delivered")
    mail.until_final(mail.send_mail(to=[LOCAL], subject="sent"))
    assert mail.subjects("bob") == ["before", "later", "sent"]


def test_relay_dev_makes_its_root_and_takes_any(dev) -> None:
    relay = dev("--no-demo")
    for number in range(2):
        relay.until_final(relay.send_mail(to=["bob@example.test"], subject=f"n{number}"))
        relay.stop()
        shutil.rmtree(relay.folder / "mail")
        relay.start()
