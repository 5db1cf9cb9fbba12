"""A backup has each message once, whatever moves while it is made."""

import json
import shutil
from pathlib import Path

import pytest

from relay.base.clock import SystemClock
from relay.operation.commands.backup import back_up, path_in, sum_line
from relay.store.spool.sqlite.database import open_database
from tests.support.relay_config import written_settings
from tests.support.tables import each_row


@pytest.fixture
def place(tmp_path):
    """A service with two messages in a mailbox, which never ran."""
    home = tmp_path / "home"
    home.mkdir()
    settings = written_settings(home, {})
    for folder in ("", ".Archive"):
        for name in ("new", "cur", "tmp"):
            (home / "mail/example.test/alice" / folder / name).mkdir(parents=True)
    for name in ("ready", "deferred"):
        (home / "mail/.submissions" / name).mkdir(parents=True)
    for number in range(2):
        (home / f"mail/example.test/alice/cur/{number}.x:2,").write_text(f"Subject: {number}\n\n")
    return settings


def backed_up(settings, tmp_path, on_file=lambda _: None):
    copy = tmp_path / "copy"
    config = settings.mailboxes.root.parent / "relay.toml"
    back_up(settings, config, copy, clock=SystemClock(), environ={}, on_file=on_file)
    return copy


def messages(copy: Path) -> list[str]:
    files = (copy / "mail").rglob("cur/*")
    return sorted(one.read_text().partition("\n")[0] for one in files)


def moving(settings, tmp_path, change):
    """Make a backup and change a file as soon as the first message is copied."""
    alice = settings.mailboxes.root / "example.test/alice"
    changed = []

    def on_file(_number: int) -> None:
        copied = list((tmp_path / "copy/mail").rglob("cur/*"))
        if copied and not changed:
            changed.append(copied[0].name)
            change(alice, copied[0].name)

    copy = backed_up(settings, tmp_path, on_file)
    assert changed
    return copy


@pytest.mark.parametrize("where", ["cur", ".Archive/cur"])
@pytest.mark.parametrize("which", ["copied", "other"])
def test_a_message_that_moves_meanwhile_is_there_once(place, tmp_path, where, which) -> None:
    def move(alice: Path, copied: str) -> None:
        other = {"0.x:2,": "1.x:2,", "1.x:2,": "0.x:2,"}[copied]
        name = copied if which == "copied" else other
        (alice / "cur" / name).rename(alice / where / f"{name}S")

    copy = moving(place, tmp_path, move)
    assert messages(copy) == ["Subject: 0", "Subject: 1"]


@pytest.mark.parametrize(("source", "target"), [("deferred", "ready"), ("ready", "deferred")])
def test_a_submission_that_becomes_due_or_held_meanwhile_is_there(
    place, tmp_path, source, target
) -> None:
    submissions = place.mailboxes.root / ".submissions"
    for number in range(3):
        (submissions / f"{source}/000000000000000{number}.1@5").write_text("x")

    def on_file(_number: int) -> None:
        copied = tmp_path / "copy/submissions" / source
        for one in (submissions / source).iterdir() if copied.is_dir() else ():
            if not (copied / one.name).exists():
                one.rename(submissions / target / one.name)
                return

    copy = backed_up(place, tmp_path, on_file)
    found = {one.name for one in (copy / "submissions").rglob("*@5")}
    assert len(found) == 3


def test_all_of_state_dir_is_copied_but_what_is_of_a_process(place, tmp_path) -> None:
    state = place.state_dir
    for name in (
        "refused/2026-11-22",
        "token-key.json",
        "srs.key",
        "new-kind/of/state",
        "policies/tmp/0a/10.toml",
        "run/lock",
        "ballast",
        "tmp/part",
        "new-kind/tmp/part",
    ):
        (state / name).parent.mkdir(parents=True, exist_ok=True)
        (state / name).write_text(name)
    copy = backed_up(place, tmp_path)
    found = {str(one.relative_to(copy / "state")) for one in (copy / "state").rglob("*")}
    assert found == {
        "refused",
        "refused/2026-11-22",
        "token-key.json",
        "srs.key",
        "new-kind",
        "new-kind/of",
        "new-kind/of/state",
        "policies",
        "policies/tmp",
        "policies/tmp/0a",
        "policies/tmp/0a/10.toml",
        "tmp",
        "new-kind/tmp",
    }
    manifest = json.loads((copy / "manifest.json").read_text())
    assert (manifest["spool"], manifest["root"]["path"]) == ({}, str(place.mailboxes.root))


DAMAGED = {
    "no database": (b"no database " * 500, "file is not a database; copied as it is"),
    "half a page": (b"SQLite format 3\0" + b"x" * 500, "; copied as it is"),
    "lost": (b"", "it is empty, and its write-ahead log is not; copied as it is"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_properties_are_copied_as_they_are_and_named(place, tmp_path, name) -> None:
    content, text = DAMAGED[name]
    alice = place.mailboxes.root / "example.test/alice"
    for suffix, octets in (("", content), ("-wal", b"its log" * 100)):
        (alice / f"relay-properties{suffix}").write_bytes(octets)
    copy = backed_up(place, tmp_path)
    assert len(messages(copy)) == 2
    copied = copy / "mail/example.test/alice"
    for suffix, octets in (("", content), ("-wal", b"its log" * 100)):
        assert (copied / f"relay-properties{suffix}").read_bytes() == octets
        assert f"alice/relay-properties{suffix}\n" in (copy / "SHA256SUMS").read_text()
    [found] = json.loads((copy / "manifest.json").read_text())["damaged"]
    assert found["path"] == str(alice / "relay-properties")
    assert found["found"].endswith(text)


@pytest.mark.parametrize("is_file", [True, False])
def test_properties_that_are_new_or_no_file_end_no_backup(place, tmp_path, is_file) -> None:
    properties = place.mailboxes.root / "example.test/alice/relay-properties"
    properties.touch() if is_file else properties.mkdir()
    copy = backed_up(place, tmp_path)
    assert (copy / "mail/example.test/alice/relay-properties").exists() == is_file
    found = json.loads((copy / "manifest.json").read_text())["damaged"]
    text = "no file; not in the backup"
    assert found == ([] if is_file else [{"path": str(properties), "found": text}])


def test_a_mail_root_that_is_missing_is_named(place, tmp_path) -> None:
    place.state_dir.mkdir()
    open_database(place.spool_file).close()
    shutil.rmtree(root := place.mailboxes.root)
    found = json.loads((backed_up(place, tmp_path) / "manifest.json").read_text())["damaged"]
    assert found == [{"path": str(root), "found": "no mail root; not in the backup"}]


def test_an_error_leaves_nothing(place, tmp_path) -> None:
    def fail(_number: int) -> None:
        raise OSError(5, "Input/output error", "disk")

    with pytest.raises(OSError, match="Input/output"):
        backed_up(place, tmp_path, fail)
    assert not (tmp_path / "copy").exists()


@each_row("name", ["a", "a b", "a\nb", "a\\b", "a\\nb", "\\", "a\r", "\udcff"])
def test_any_file_name_is_found_again_in_the_sums(name) -> None:
    line = sum_line("0" * 64, Path(name))
    assert (path_in(line), line.count(b"\n")) == (Path(name), 1)


def test_no_symbolic_link_is_followed(place, tmp_path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    for name in ("cur", "ready"):
        (secret / name).mkdir()
        (secret / name / "1.x").write_text("secret")
    (secret / "file").write_text("secret")
    root, state = place.mailboxes.root, place.state_dir
    state.mkdir()
    alice, submissions = root / "example.test/alice", root / ".submissions"
    (submissions / "ready").rmdir()
    noted = {
        root / "file": "file",
        root / "away.test": "",
        root / "example.test/eve": "",
        submissions / "ready": "ready",
        submissions / "keys": "ready",
        submissions / "preparing": "ready",
        alice / "relay-properties": "file",
    }
    unnoted = {
        alice / "cur/2.x:2,": "file",
        alice / ".Secret": "",
        alice / ".Archive/tmp/x": "file",
        alice / "relay-properties-wal": "file",
        state / "srs.key": "file",
        state / "refused": "",
    }
    for path, target in (noted | unnoted).items():
        path.symlink_to(secret / target)
    copy = backed_up(place, tmp_path)
    assert messages(copy) == ["Subject: 0", "Subject: 1"]
    files = [one for one in copy.rglob("*") if one.is_file()]
    assert [one for one in copy.rglob("*") if one.is_symlink()] == []
    assert [one for one in files if one.read_bytes() == b"secret"] == []
    found = {
        Path(one["path"]) for one in json.loads((copy / "manifest.json").read_text())["damaged"]
    }
    assert found == set(noted)
