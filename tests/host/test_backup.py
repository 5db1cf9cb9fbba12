"""`relay backup` and `relay restore` of real services, and `relay queue release --restored`."""

import hashlib
import json
import os
import pwd
import re
import shutil
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvloop

from relay.base.clock import SystemClock
from relay.base.settings.reader import load
from relay.operation.commands.offline import restored_submissions
from relay.operation.commands.restore import Restored, restore
from relay.store.journeys.submission_log import SubmissionLog
from relay.submission.outbox import restored as restorations
from relay.submission.outbox.restored import NotHeldError
from relay.transport.signing.private_keys import new_key, write_pem
from tests.support import relay_starts
from tests.support.disks import small_disk
from tests.support.event_source import ReceivedEvent, event_source
from tests.support.in_thread import in_threads
from tests.support.relay_process import RelayProcess, until
from tests.support.remotes import Remotes

OK, USAGE, DATA, NO_INPUT, UNAVAILABLE, CONFIGURATION = 0, 64, 65, 66, 69, 78
LATER = "450 4.2.0 greylisted, try again later"
PATIENT = {"delivery": {"retry": ["1h"], "expire_after": "2h"}}
SERVICE = 65534  # the user of a service
ALL = "see relay queue list --restored, then relay queue release --restored"
BIG_BYTES = 300 * 2**20  # takes long enough to be hashed that a kill comes before its end
BEFORE = 15  # messages of each sender
LATER_S = 0.5  # until a scheduled send is due


@contextmanager
def senders(relay: RelayProcess) -> Iterator[list[str]]:
    """Send by SMTP, by Graph, and by Graph a moment later, until the end of the block; yield the subjects
    that were answered.
    """
    answered: list[str] = []
    is_over = threading.Event()

    def send(kind: str, one: Callable[[str], object]) -> None:
        number = 0
        while not is_over.is_set():
            subject = f"{kind} {number}"
            one(subject)
            answered.append(subject)
            number += 1

    def by_smtp(subject: str) -> None:
        content = f"Subject: {subject}\r\n\r\nhello\r\n".encode()
        relay.submit("alice@example.test", ["bob@example.test", "x@a.test"], content)

    def by_graph(subject: str) -> None:
        relay.send_mail(to=["bob@example.test", "x@a.test"], subject=subject)

    def later(subject: str) -> None:
        at = (datetime.now(UTC) + timedelta(seconds=LATER_S)).isoformat()
        relay.send_mail(
            to=["bob@example.test", "x@a.test"],
            subject=subject,
            save=not subject.endswith("0"),  # what becomes of its draft
            singleValueExtendedProperties=[{"id": "SystemTime 0x3FEF", "value": at}],
        )

    graph = [partial(send, f"graph{n}", by_graph) for n in range(2)]
    work = [partial(send, "smtp", by_smtp), *graph, partial(send, "later", later)]
    with in_threads(work, over=is_over):
        yield answered


def tree(folder: Path) -> list[tuple[str, int, int]]:
    """Every file and directory below a folder, with its size and time."""
    found = [(one, one.lstat()) for one in sorted(folder.rglob("*"))]
    return [(str(one), facts.st_size, facts.st_mtime_ns) for one, facts in found]


def restored_anew(relay: RelayProcess, copy: Path) -> None:
    """Replace what the relay has, but not its configuration, with the backup."""
    wipe(relay)
    assert relay.cli("restore", str(copy)).returncode == OK


def wipe(relay: RelayProcess) -> None:
    for name in ("state", "mail"):
        shutil.rmtree(relay.folder / name, ignore_errors=True)
    if RelayProcess.empty_spool is not None:
        RelayProcess.empty_spool(relay.config["spool"]["url"])


def restored(relay: RelayProcess) -> list[dict[str, object]]:
    return list(relay.cli_json("queue", "list", "--restored"))


async def first_event(relay: RelayProcess, *, after: int) -> ReceivedEvent:
    async with event_source(*relay.http, query={"after": str(after)}) as source:
        assert (await source.chunk()).startswith(b"retry:")
        (event,) = await source.events(1)
        return event


@pytest.fixture
def serve_logged(serve, tmp_path: Path) -> Iterator[Callable[..., RelayProcess]]:
    """As `serve`; all that they log is in the folder that pytest keeps of a failed test."""
    relays: list[RelayProcess] = []

    def serve_logged(*words: Any, **options: Any) -> RelayProcess:
        relays.append(serve(*words, **options))
        return relays[-1]

    yield serve_logged
    for number, relay in enumerate(relays):
        (tmp_path / f"relay-{number}.log").write_text(relay.log)


def test_what_was_answered_before_a_backup_under_load_is_there_once(
    remotes: Remotes, tmp_path: Path, serve_logged
) -> None:
    copy = tmp_path / "copy"
    remote = remotes.start("a.test", rcpt={"x@a.test": LATER})
    relay, fresh = (serve_logged(remotes, config=PATIENT) for _ in range(2))
    fresh.stop()
    with senders(relay) as answered:
        until("mail is sent", lambda: len(answered) > 3 * BEFORE)
        before = list(answered)
        done = relay.cli("backup", str(copy))
        until("mail is sent meanwhile", lambda: len(answered) > len(before) + BEFORE)
    assert done.returncode == OK, done.stderr
    assert remote.received("x@a.test") == []
    relay.stop()
    remote.rcpt.clear()
    restored_anew(fresh, copy)
    assert len(restored(fresh)) >= len(before)
    root_id = (copy / "submissions/id").read_text()
    assert (fresh.folder / "mail/.submissions/id").read_text() == root_id
    fresh.start()
    assert len(restored(fresh)) >= len(before)
    assert remote.received("x@a.test") == []
    assert fresh.cli("queue", "release", "--restored").returncode == OK
    until("pickup has nothing left", lambda: not fresh.pending_submissions())
    until("the queue is empty", lambda: not fresh.queue())
    there = Counter(fresh.subjects("bob"))
    sent = Counter(
        str(message_from_bytes(one.content)["subject"]) for one in remote.received("x@a.test")
    )
    for found in (there, sent):
        assert {one: found[one] for one in before if found[one] != 1} == {}
        assert [one for one, number in found.items() if number > 1] == []
    assert fresh.faults() == []
    assert "0 faults" in fresh.cli("storage", "verify", "--full").stdout


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, serve_module) -> tuple[RelayProcess, Path]:
    """A service that was killed with a submission ready, two scheduled sends and a held entry; its backup."""
    relay = serve_module(config=PATIENT)
    relay.until_final(relay.send_mail(to=["bob@example.test"], subject="delivered"))
    queue_id = relay.submit("alice@example.test", ["x@nowhere.invalid"], b"Subject: q\r\n\r\n")
    relay.cli("queue", "hold", queue_id, "--reason", "suspicious")
    due = {"id": "SystemTime 0x3FEF"}
    for subject, hours in (("soon", 1), ("late", 2)):
        due["value"] = (datetime.now(UTC) + timedelta(hours=hours)).isoformat()
        relay.send_mail(
            to=["bob@example.test"], subject=subject, singleValueExtendedProperties=[due]
        )
    relay.stop()
    relay.start(crash_at="submission-ready")
    with pytest.raises(OSError):
        relay.send_mail(to=["bob@example.test"], subject="ready")
    relay.wait_end()
    soon = min(relay.scheduled_submissions(), key=lambda one: one.name.partition("@")[2])
    soon.rename(soon.with_name(f"{soon.name.partition('@')[0]}@{SystemClock().time_us()}"))
    copy = tmp_path_factory.mktemp("backup") / "copy"
    done = relay.cli("backup", str(copy))
    assert done.returncode == OK, done.stderr
    return relay, copy


def test_a_backup_can_be_read_by_its_owner_only(stopped: tuple[RelayProcess, Path]) -> None:
    _, copy = stopped
    every = [copy, *copy.rglob("*")]
    assert {one.stat().st_mode & 0o777 for one in every if one.is_dir()} == {0o700}
    assert {one.stat().st_mode & 0o777 for one in every if one.is_file()} == {0o600}
    checked = subprocess.run(
        ["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=copy, check=False
    )
    assert checked.returncode == OK
    names = {one.name for one in copy.rglob("*")}
    assert {"relay.toml", "accounts.toml", "spool.sqlite", "id"} <= names
    assert not names & {"ballast", "relay-index", "lock", "control.sock"}


def test_what_waits_is_held_until_it_is_released(stopped: tuple[RelayProcess, Path]) -> None:
    relay, copy = stopped
    wipe(relay)
    done = relay.cli_json("restore", str(copy))
    assert done["held"] == {"entries": 0, "submissions": 3}
    for _ in range(2):  # stopped, and then running
        found = {str(one["id"]): one for one in restored(relay)}
        assert len(found) == 3  # what was held before the backup stays held
        assert {one["state"] for one in found.values()} == {"held"}
        assert {one["expires"] for one in found.values()} == {None}
        waiting = [one for one in found.values() if one["next_hop"] == "pickup"]
        assert sorted(one["due"] is not None for one in waiting) == [False, True, True]
        assert {one["sender"] for one in waiting} == {"alice@example.test"}
        assert {one["recipients"][0]["address"] for one in waiting} == {"bob@example.test"}
        if relay.process_ended:
            lost_us = SystemClock().time_us()
            restored_anew(relay, copy)
            relay.start()
            relay.until_final(relay.send_mail(to=["bob@example.test"], subject="new"))
            assert relay.subjects("bob") == ["delivered", "new"]
            assert uvloop.run(first_event(relay, after=lost_us)).type == "gap"
    drafts = {one["subject"]: one["id"] for one in relay.messages("drafts")}
    assert set(drafts) == {"soon", "late", "ready"}
    for identity in drafts.values():
        assert relay.graph("PATCH", f"/me/messages/{identity}", {"subject": "x"}).status == 409
        assert relay.graph("POST", f"/me/messages/{identity}/send").status == 409
        assert relay.graph("DELETE", f"/me/messages/{identity}").status == 409
    for words in ("--restored",), ("--restored", "--all"):
        dry = relay.cli_json("queue", "release", *words, "--dry-run")
        assert (len(dry), len(restored(relay))) == (4, 3)
    some = relay.cli("queue", "release", "--restored", "--recipient", "nobody@*")
    assert f"released 0 of 0 entries; a restore still holds 3 submissions: {ALL}" in some.stdout
    assert f"of these, a restore holds 3: {ALL}" in relay.cli("queue", "list").stdout
    done = relay.cli("queue", "release", "--restored", "--all")
    assert "released 3 of 4 entries, 1 stays as it was" in done.stdout, done
    until("what is due is sent", lambda: len(relay.subjects("bob")) == 4)
    assert relay.subjects("bob") == ["delivered", "new", "ready", "soon"]
    assert (restored(relay), len(relay.scheduled_submissions())) == ([], 1)
    assert "a restore holds" not in relay.cli("queue", "list").stdout
    (held,) = relay.queue()
    assert (held["state"], held["reason"]) == ("held", "root: suspicious") or held[
        "state"
    ] == "held"
    assert held["expires"] is not None
    assert relay.faults() == []
    assert relay.stop() == OK


def test_what_waits_is_cancelled(stopped: tuple[RelayProcess, Path]) -> None:
    relay, copy = stopped
    wipe(relay)
    assert relay.cli("restore", str(copy)).returncode == OK
    relay.start()
    assert relay.cli("queue", "cancel", "--restored").returncode == OK
    assert relay.stop() == OK
    assert restored(relay) == [*relay.scheduled_submissions(), *relay.pending_submissions()] == []
    assert len(list((relay.folder / "mail/example.test/alice/.Drafts/cur").iterdir())) == 3


@pytest.mark.parametrize(
    ("change", "sent"),
    [("newer draft", ["new"]), ("newer submission", ["old"]), ("cancelled", [])],
)
def test_a_scheduled_send_that_was_changed_between_two_copies_is_as_its_draft(
    change: str, sent: list[str], serve
) -> None:
    relay = serve()
    due = {"id": "SystemTime 0x3FEF", "value": (datetime.now(UTC) + timedelta(hours=1)).isoformat()}
    identity = relay.send_mail(
        to=["bob@example.test"], subject="old", singleValueExtendedProperties=[due]
    )
    place = relay.folder / "mail/.submissions/deferred"
    drafts = relay.folder / "mail/example.test/alice/.Drafts/cur"
    (old,), (old_draft,) = place.iterdir(), drafts.iterdir()
    old_content = old.read_bytes()
    changed = {"subject": "new", "singleValueExtendedProperties": [due]}
    if change == "cancelled":
        changed["singleValueExtendedProperties"] = [due | {"value": None}]
    assert relay.graph("PATCH", f"/me/messages/{identity}", changed).status == 200
    relay.stop()
    (new_draft,) = drafts.iterdir()
    if change == "newer submission":
        new_draft.unlink()
        old_draft.write_bytes(old_content)
    else:
        for one in place.iterdir():
            one.unlink()
        old.write_bytes(old_content)
    settings, clock = load(relay.config_file, {}), SystemClock()
    log = SubmissionLog(place.parent / "log", role="cli", clock=clock)
    held = restored_submissions(settings, clock, log)
    assert held.hold((), {}) == []
    assert held.count() == 1
    relay.start()
    assert relay.cli("queue", "release", "--restored").returncode == OK
    assert restored(relay) == []
    relay.until_final(relay.send_mail(to=["bob@example.test"], subject="another"))
    now = {"singleValueExtendedProperties": [due | {"value": datetime.now(UTC).isoformat()}]}
    assert relay.graph("PATCH", f"/me/messages/{identity}", now).status == 200
    until("it is sent", lambda: relay.subjects("bob") == ["another", *sent])


@pytest.fixture
def with_ready(serve) -> RelayProcess:
    """A service that was killed with a submission ready."""
    relay = serve(config=PATIENT)
    relay.stop()
    relay.start(crash_at="submission-ready")
    with pytest.raises(OSError):
        relay.send_mail(to=["bob@example.test"], subject="ready")
    relay.wait_end()
    return relay


def test_a_submission_with_several_files_is_held_once(
    with_ready: RelayProcess, tmp_path: Path
) -> None:
    relay = with_ready
    (ready,) = relay.pending_submissions()
    submission_id, _, at_us = ready.name.partition("@")
    content = ready.read_bytes()
    same, other = (ready.with_name(f"{submission_id}@{int(at_us) + more}") for more in (1, 2))
    same.write_bytes(content)
    other.write_bytes(content + b"x")
    assert relay.cli("backup", str(tmp_path / "copy")).returncode == OK
    wipe(relay)
    done = relay.cli_json("restore", str(tmp_path / "copy"))
    assert done["held"] == {"entries": 0, "submissions": 1}
    corrupt = ready.parent.with_name("corrupt") / other.name
    assert [one["path"] for one in done["damaged"]] == [str(corrupt)]
    assert corrupt.read_bytes() == content + b"x"
    relay.start()
    assert len(restored(relay)) == 1
    assert relay.cli("queue", "release", "--restored").returncode == OK
    until("it is sent", lambda: relay.subjects("bob") == ["ready"])
    assert restored(relay) == relay.pending_submissions() == []


def test_a_restoration_that_would_send_something_leaves_nothing_and_is_repeated(
    with_ready: RelayProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay, copy, names = with_ready, tmp_path / "copy", restorations._names
    (ready,) = relay.pending_submissions()
    assert relay.cli("backup", str(copy)).returncode == OK
    wipe(relay)

    def listed(directory: Path) -> list[str]:
        if directory == ready.parent.with_name("deferred"):  # after ready/ was emptied
            (ready.parent / ready.name).touch()  # whatever puts it there
        return names(directory)

    def run() -> Restored:
        return restore(
            copy, relay.config_file, clock=SystemClock(), environ={}, who="test", allow=print
        )

    with monkeypatch.context() as patch:
        patch.setattr(restorations, "_names", listed)
        with pytest.raises(NotHeldError, match=ready.name):
            run()
    assert not (relay.folder / "mail").exists()
    assert run().held.submissions == 1


def article_numbers(relay: RelayProcess, folder: str) -> dict[str, int]:
    """The IMAP UIDs in a folder of bob's by subject."""
    expand = "singleValueExtendedProperties($filter=id%20eq%20'Integer%200x0E23')"
    path = f"/me/mailFolders/{folder}/messages?$select=subject&$expand={expand}"
    listed = relay.graph("GET", path, token="bob").json()["value"]
    found = ((one["subject"], *one["singleValueExtendedProperties"]) for one in listed)
    return {subject: int(number["value"]) for subject, number in found}


def test_article_numbers_that_were_given_after_a_backup_are_not_given_again(
    tmp_path: Path, serve
) -> None:
    def receive(subject: str, *, in_archive: bool = False) -> None:
        relay.until_final(relay.send_mail(to=["bob@example.test"], subject=subject))
        if in_archive:
            [received] = (
                one for one in relay.messages("inbox", token="bob") if one["subject"] == subject
            )
            path = f"/me/messages/{received['id']}/move"
            moved = relay.graph("POST", path, {"destinationId": "archive"}, token="bob")
            assert moved.status == 201

    relay = serve()
    receive("first")
    assert article_numbers(relay, "inbox") == {"first": 1}
    assert relay.cli("backup", str(tmp_path / "copy")).returncode == OK
    receive("lost")
    receive("lost too", in_archive=True)
    assert article_numbers(relay, "inbox") == {"first": 1, "lost": 2}
    assert article_numbers(relay, "archive") == {"lost too": 1}
    relay.stop()
    restored_anew(relay, tmp_path / "copy")
    relay.start()
    receive("next")
    receive("another", in_archive=True)
    assert article_numbers(relay, "inbox") == {"first": 1, "next": 1_000_002}
    assert article_numbers(relay, "archive") == {"another": 1_000_001}


def test_a_place_that_is_not_empty_stays_as_it_is(stopped: tuple[RelayProcess, Path]) -> None:
    relay, copy = stopped
    for name in ("state", "mail"):
        shutil.rmtree(relay.folder / name, ignore_errors=True)
    there = relay.folder / "mail/example.test/carol/cur/1.x"
    there.parent.mkdir(parents=True)
    there.write_text("Subject: carol\n\n")
    before = tree(relay.folder)
    done = relay.cli("restore", str(copy))
    assert (done.returncode, "mail is not empty: found example.test" in done.stderr) == (
        USAGE,
        True,
    )
    assert tree(relay.folder) == before
    shutil.rmtree(relay.folder / "mail")
    (relay.folder / "state").mkdir()
    (relay.folder / "state/lost+found").mkdir()  # of a file system that was just made
    assert relay.cli("restore", str(copy)).returncode == OK


def test_a_backup_needs_an_empty_directory_elsewhere(
    stopped: tuple[RelayProcess, Path], tmp_path: Path
) -> None:
    relay, copy = stopped
    (tmp_path / "mine").touch()
    before = tree(copy)
    for place, text in (
        (copy, "is not empty: found SHA256SUMS"),
        (tmp_path, "is not empty: found mine"),
        (relay.folder / "state/copy", "expected a directory elsewhere"),
        (relay.folder / "mail/copy", "expected a directory elsewhere"),
    ):
        done = relay.cli("backup", str(place))
        assert (done.returncode, text in done.stderr) == (USAGE, True), done.stderr
    assert tree(copy) == before
    assert relay.cli("restore", str(tmp_path / "nowhere")).returncode == NO_INPUT


def cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def summed_elsewhere(copy: Path) -> None:
    """Let the sums name a file outside the backup, as its maker could."""
    sums, manifest = copy / "SHA256SUMS", copy / "manifest.json"
    octets = sums.read_bytes() + hashlib.sha256(b"").hexdigest().encode() + b"  ../outside\n"
    sums.write_bytes(octets)
    facts = json.loads(manifest.read_text())
    facts |= {"files": facts["files"] + 1, "checksums": hashlib.sha256(octets).hexdigest()}
    manifest.write_text(json.dumps(facts))
    (copy.parent / "outside").touch()


DAMAGES: tuple[tuple[Callable[[Path], object], str], ...] = (
    (lambda copy: (copy / "manifest.json").unlink(), "the backup was cut short"),
    (lambda copy: cut(copy / "manifest.json"), "manifest.json: "),
    (lambda copy: (copy / "SHA256SUMS").unlink(), "SHA256SUMS"),
    (lambda copy: cut(copy / "SHA256SUMS"), "SHA256SUMS was changed or cut short"),
    (lambda copy: cut(copy / "spool/spool.sqlite"), "spool.sqlite was changed or cut short"),
    (lambda copy: (copy / "submissions/id").unlink(), "submissions/id is missing"),
    (lambda copy: shutil.rmtree(copy / "mail"), " is missing"),
    (lambda copy: [one.unlink() for one in copy.rglob("*") if one.is_file()], "it is no backup"),
    (lambda copy: os.mkfifo(copy / "mail/fifo"), "expected files and directories"),
    (summed_elsewhere, "found ../outside, which is elsewhere"),
)


def test_a_damaged_backup_is_refused(stopped: tuple[RelayProcess, Path], tmp_path: Path) -> None:
    relay, copy = stopped
    for name in ("state", "mail"):
        shutil.rmtree(relay.folder / name, ignore_errors=True)
    before = tree(relay.folder)
    for number, (damage, text) in enumerate(DAMAGES):
        broken = tmp_path / str(number)
        shutil.copytree(copy, broken)
        damage(broken)
        done = relay.cli("restore", str(broken))
        assert done.returncode in (DATA, UNAVAILABLE), done
        assert (text in done.stderr, "Traceback" in done.stderr) == (True, False), done.stderr
        assert tree(relay.folder) == before


def killed(relay: RelayProcess, words: list[str], seen: Path) -> None:
    """Start a command, and kill it when a file is there."""
    command = [*relay_starts.RELAY, *words, "--config", str(relay.config_file)]
    process = relay_starts.start(command, cwd=relay.folder, env=relay.environment)
    until(f"{seen} is there", lambda: seen.exists() or process.poll() is not None)
    process.kill()
    assert process.wait(20) == -9


def big(path: Path) -> Path:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(BIG_BYTES)
    return path


@pytest.mark.parametrize(
    "place", ["config/policies/a.toml", "state/big", "mail/example.test/zoe/cur/1.big"]
)
def test_a_backup_that_is_killed_is_refused(
    stopped: tuple[RelayProcess, Path], tmp_path: Path, place: str
) -> None:
    relay, copy = stopped
    restored_anew(relay, copy)
    source = relay.folder / place.removeprefix("config/")
    written = tmp_path / "copy" / (f"config{source}" if place.startswith("config") else place)
    big(source)
    try:
        killed(relay, ["backup", str(tmp_path / "copy")], written)
    finally:
        source.unlink()
    assert not (tmp_path / "copy/manifest.json").exists()
    wipe(relay)
    done = relay.cli("restore", str(tmp_path / "copy"))
    assert (done.returncode, "the backup was cut short" in done.stderr) == (DATA, True), done.stderr
    again = relay.cli("backup", str(tmp_path / "copy"))
    assert (again.returncode, "is not empty" in again.stderr) == (USAGE, True)


def test_a_relay_does_not_start_in_half_a_restoration(
    stopped: tuple[RelayProcess, Path], tmp_path: Path
) -> None:
    relay, copy = stopped
    restored_anew(relay, copy)
    source = big(relay.folder / "state/big")
    assert relay.cli("backup", str(tmp_path / "copy")).returncode == OK
    source.unlink()
    wipe(relay)
    killed(relay, ["restore", str(tmp_path / "copy")], source)
    for verb in ("serve", "check"):
        done = relay.cli(verb)
        assert (done.returncode, "was cut short" in done.stderr) == (CONFIGURATION, True), done
    done = relay.cli("restore", str(copy))
    assert (done.returncode, "is not empty" in done.stderr) == (USAGE, True), done
    wipe(relay)
    assert relay.cli("restore", str(copy)).returncode == OK


def test_a_full_disk_leaves_nothing_half_done(
    stopped: tuple[RelayProcess, Path], tmp_path: Path
) -> None:
    relay, copy = stopped
    restored_anew(relay, copy)
    source = relay.folder / "mail/example.test/bob/cur/1.large"
    source.write_bytes(os.urandom(3 * 2**20))
    disk = tmp_path / "disk"
    disk.mkdir()
    with small_disk(disk, size_bytes=2**21):
        done = relay.cli("backup", str(disk / "copy"))
        assert (done.returncode, "No space left" in done.stderr) == (UNAVAILABLE, True), done
        assert list(disk.iterdir()) == []
        assert relay.cli("backup", str(tmp_path / "copy")).returncode == OK
        wipe(relay)
        (relay.folder / "mail").symlink_to(disk)
        done = relay.cli("restore", str(tmp_path / "copy"))
        assert (done.returncode, "No space left" in done.stderr) == (UNAVAILABLE, True), done
        assert list(disk.iterdir()) == []
        assert not (relay.folder / "state").exists()
    (relay.folder / "mail").unlink()
    assert relay.cli("restore", str(tmp_path / "copy")).returncode == OK


def test_of_a_faulty_relay_toml_the_backup_has_what_the_running_relay_has_read(
    tmp_path: Path, serve
) -> None:
    relay = serve()
    before = relay.config_file.read_text()
    for fault in ("[[", "[smtpp]\n", "[http]\n"):
        relay.config_file.write_text(f"{before}\n{fault}")
        copy = tmp_path / f"copy{len(fault)}"
        done = relay.cli("backup", str(copy))
        assert done.returncode == OK, done.stderr
        assert f"{relay.config_file}:" in done.stderr
        assert "as the running relay has read it before\n" in done.stderr
        kept = copy / f"config{relay.config_file}"
        assert kept.read_text() == before
    relay.write_config(relay.config | {"policy": {"held_max": 7}})
    assert relay.cli("reload").returncode == OK
    reloaded = relay.config_file.read_text()
    relay.config_file.write_text(f"{before}\n[[")
    done = relay.cli("backup", str(tmp_path / "after"))
    assert (tmp_path / f"after/config{relay.config_file}").read_text() == reloaded
    answer = relay.graph("GET", "/relay/v1/configuration", token="operator")
    assert answer.status == 404
    relay.stop()
    assert relay.cli("backup", str(tmp_path / "none")).returncode == CONFIGURATION
    shutil.rmtree(relay.folder / "state")
    shutil.rmtree(relay.folder / "mail")
    relay.config_file.unlink()
    command = [*relay_starts.RELAY, "restore", str(tmp_path / "after"), "--yes"]
    done = relay_starts.run(command, cwd=tmp_path, env=relay.environment)
    assert (done.returncode, relay.config_file.read_text()) == (OK, reloaded), done.stderr


def set_ids(mode: "re.Match[str]") -> str:
    return f"{mode[1]}{int(mode[2]) | 0o6000}"


def test_the_configuration_is_restored_as_well(tmp_path: Path, serve) -> None:
    home, elsewhere = tmp_path / "etc", tmp_path / "elsewhere/name"
    secret = home / "secret"
    for one in (home, elsewhere.parent):
        one.mkdir()
    relay = serve(policies={"10-a.toml": ""})
    for name in ("relay.toml", "accounts.toml"):
        shutil.copy(relay.folder / name, home)
    shutil.copytree(relay.folder / "policies", home / "policies")
    secret.write_text("s3cret\n")
    secret.chmod(0o600)
    elsewhere.write_text("relay.example.test\n")
    text = relay.config_file.read_text()
    text = text.replace('"relay.example.test"', f'"${{file:{elsewhere}}}"', 1)
    route = '[[route]]\ndomain = "c.test"\nnext_hop = "smtp://127.0.0.1:26"\n'
    auth = 'auth = { user = "u", password_file = "secret" }\n'
    key = home / "dkim/s1.pem"
    key.parent.mkdir(mode=0o750)
    key.write_bytes(write_pem(new_key("ed25519")))
    key.chmod(0o640)
    private = key.read_bytes()
    dkim = f'[[dkim]]\ndomain = "a.test"\nselector = "s1"\nkey = "{key}"\n'
    own = '[[domain]]\nname = "c.test"\nrecipients = "file:people"\n'
    (home / "people").write_text("ann@c.test\n")
    text = text.replace("[policy]", f'[policy]\nshipped = "{(shipped := tmp_path / "shipped")}"', 1)
    shipped.mkdir()
    (shipped / "20-shipped.toml").touch()
    (home / "relay.toml").write_text(text + route + auth + dkim + own)

    def run(*words: str) -> "subprocess.CompletedProcess[str]":
        command = [*relay_starts.RELAY, *words]
        return relay_starts.run(command, cwd=tmp_path, env=relay.environment)

    made = run("backup", str(tmp_path / "copy"), "--config", str(home / "relay.toml"))
    assert made.returncode == OK, made.stderr
    assert list((tmp_path / "copy").rglob("20-shipped.toml")) == []
    shutil.rmtree(home)
    shipped.rename(tmp_path / "away")
    done = run("restore", str(tmp_path / "copy"))
    assert (done.returncode, "policy.shipped: found" in done.stderr) == (CONFIGURATION, True), done
    (tmp_path / "away").rename(shipped)
    manifest = tmp_path / "copy/manifest.json"
    manifest.write_text(re.sub(r'("mode": ?)(\d+)', set_ids, manifest.read_text()))
    done = run("restore", str(tmp_path / "copy"), "--json")
    assert done.returncode == OK, done.stderr
    assert json.loads(done.stdout)["kept"] == []
    assert (secret.read_text(), secret.stat().st_mode & 0o7777) == ("s3cret\n", 0o600)
    assert (key.read_bytes(), key.stat().st_mode & 0o7777) == (private, 0o640)
    assert (home / "state").stat().st_mode & 0o4000 == 0
    assert (home / "policies/10-a.toml").exists()
    assert (home / "people").read_text() == "ann@c.test\n"
    shutil.rmtree(home / "state")
    shutil.rmtree(home / "mail")
    elsewhere.write_text("relay2.example.test\n")
    done = run("restore", str(tmp_path / "copy"), "--json")
    assert json.loads(done.stdout)["kept"] == [str(elsewhere)]
    shutil.rmtree(home / "state")
    shutil.rmtree(home / "mail")
    secret.write_text("another\n")
    before = tree(home)
    done = run("restore", str(tmp_path / "copy"))
    assert (done.returncode, f"found {secret}" in done.stderr) == (USAGE, True), done
    assert tree(home) == before
    given = run("restore", str(tmp_path / "copy"), "--config", str(home / "relay.toml"))
    assert (given.returncode, secret.read_text()) == (OK, "another\n"), given.stderr


def test_root_restores_for_the_user_of_the_service(
    stopped: tuple[RelayProcess, Path], tmp_path: Path
) -> None:
    if os.geteuid():
        pytest.skip("only root can become another user")
    relay, copy = stopped
    restored_anew(relay, copy)
    relay.folder.chmod(0o755)
    places = [relay.folder / name for name in ("state", "mail")]
    (relay.folder / "state").chmod(0o750)
    for name, mode in (("relay.toml", 0o640), ("accounts.toml", 0o640), ("policies", 0o750)):
        os.chown(relay.folder / name, 0, SERVICE)
        (relay.folder / name).chmod(mode)
    for one in [one for place in places for one in (place, *place.rglob("*"))]:
        os.chown(one, SERVICE, SERVICE)
    assert relay.cli("backup", str(tmp_path / "copy")).returncode == OK
    left = [one for place in places for one in place.rglob("*") if not one.lstat().st_uid]
    assert left == []
    wipe(relay)
    done = relay.cli("restore", str(tmp_path / "copy"))
    assert done.returncode == OK, done.stderr
    every = [one for place in places for one in (place, *place.rglob("*"))]
    assert {(one.lstat().st_uid, one.lstat().st_gid) for one in every} == {(SERVICE, SERVICE)}
    assert (relay.folder / "state").stat().st_mode & 0o777 == 0o750
    wipe(relay)
    manifest = tmp_path / "copy/manifest.json"
    user = pwd.getpwuid(SERVICE).pw_name
    manifest.write_text(manifest.read_text().replace(f'"{user}"', '"nobody-here"'))
    done = relay.cli("restore", str(tmp_path / "copy"))
    assert done.returncode == CONFIGURATION, done
    assert "belonged to the user nobody-here, who does not exist here" in done.stderr
    assert not (relay.folder / "state").exists()
    for one in [relay.folder / "accounts.toml"]:
        assert one.exists()
