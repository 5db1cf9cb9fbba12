"""Mail files and folders with unusual names and lines, as other programs may have left them."""

import os
from base64 import b64encode
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from relay.base.clock import SystemClock
from relay.commands import mail_export
from relay.commands.mail_export import (
    MailStates,
    export_eml,
    export_maildir,
    export_mbox,
    stored_mail,
)
from relay.commands.mail_import import BadMailError, MailImport, find_mail
from relay.mailbox.folders import list_folders
from relay.mailbox.message_file import delivered_base_name, delivered_id, parse_name
from relay.mailbox.message_state import MessageState, encode_state
from relay.mailbox.state_file import StateFile
from tests.support.disks import read_only

INBOX = ("tmp", "new", "cur")


def maildir(path: Path) -> Path:
    for name in INBOX:
        (path / name).mkdir(parents=True)
    return path


def put(mailbox: Path, name: str, content: bytes = b"Subject: x\r\n\r\nx\r\n") -> None:
    (mailbox / "cur" / name).write_bytes(content)


def test_an_exported_message_replaces_its_own_file_only(tmp_path: Path) -> None:
    box = maildir(tmp_path / "box")
    for name in ("1.a.host:2,S", "1.a.host2:2,", "2.[ab]*.host:2,", "2.a.host:2,"):
        put(box, name)
    for _ in range(2):
        export_maildir(stored_mail(list_folders(box)), tmp_path / "out")
    written = sorted(one.name for one in (tmp_path / "out" / "cur").iterdir())
    assert written == ["1.a.host2:2,", "1.a.host:2,S", "2.[ab]*.host:2,", "2.a.host:2,"]


def test_mail_programs_may_change_the_mailbox_during_an_export(tmp_path: Path) -> None:
    box = maildir(tmp_path / "box")
    names = ["1.a.host:2,", "2.a.host:2,", "3.a.host:2,", "4.a.host:2,"]
    for name in names:
        put(box, name, f"Subject: {name}\r\n\r\nx\r\n".encode())
    mail = stored_mail(list_folders(box))
    found = [next(mail)]
    first, read, removed, moved = (box / "cur" / name for name in names)
    first.unlink()  # it is open
    read.rename(box / "cur" / "2.a.host:2,FS")
    removed.unlink()
    moved.rename(box / "new" / "4.a.host")
    texts = [b"".join(found[0].pieces())]
    for one in mail:
        found.append(one)
        texts.append(b"".join(one.pieces()))
    assert [one.name.flags for one in found] == ["", "FS", ""]
    assert [text[9:10] for text in texts] == [b"1", b"2", b"4"]
    assert all(one.file.closed for one in found)


@pytest.mark.parametrize("write", [export_eml, export_mbox, export_maildir])
def test_what_is_no_file_does_not_end_an_export(tmp_path: Path, write: Callable[..., int]) -> None:
    box = maildir(tmp_path / "box")
    put(box, "1.a.host:2,")
    secret = tmp_path / "secret"
    secret.write_text("Subject: secret\n\n")
    for name in ("new/2.a.host", "cur/2.b.host:2,"):
        (box / name).symlink_to(secret)
    (box / "new/3.a.host").symlink_to("nowhere")
    (box / "new/4.a.host").mkdir()
    os.mkfifo(box / "new/5.a.host")
    put(box, "6.a.host:2,")
    assert write(stored_mail(list_folders(box)), tmp_path / "out") == 2
    files = [one for one in tmp_path.glob("out*/**/*") if one.is_file()] + [tmp_path / "out"]
    assert not any(b"secret" in one.read_bytes() for one in files if one.is_file())


@pytest.fixture
def linked(tmp_path: Path) -> tuple[Path, Path, list[Path]]:
    """A Maildir and a directory of .eml files, each with a message, and the links in them."""
    secret = tmp_path / "secret.eml"
    secret.write_text("Subject: secret\n\n")
    box, folder = maildir(tmp_path / "box"), tmp_path / "folder"
    put(box, "1.a.host:2,")
    (folder / "inner").mkdir(parents=True)
    (folder / "inner/a.eml").write_text("Subject: x\n\n")
    links = [
        box / "cur/2.a.host:2,",
        box / "new/3.a.host",
        folder / "b.eml",
        folder / "inner/c.eml",
    ]
    for one in links:
        one.symlink_to(secret)
    (folder / "away").symlink_to(box)
    return box, folder, links


def test_an_import_follows_no_link(linked: tuple[Path, Path, list[Path]]) -> None:
    box, folder, links = linked
    left_out: list[str] = []
    found = [one.path for path in (box, folder) for one in find_mail(path, left_out.append)]
    assert found == [box / "cur/1.a.host:2,", folder / "inner/a.eml"]
    assert sorted(left_out) == sorted(f"left out {one}: a symbolic link" for one in links)


def test_a_link_is_neither_mail_nor_a_directory_of_a_maildir(
    linked: tuple[Path, Path, list[Path]], tmp_path: Path
) -> None:
    box, folder, links = linked
    for one in (box, folder, links[2]):
        link = tmp_path / f"to-{one.name}"
        link.symlink_to(one)
        with pytest.raises(BadMailError, match="found a symbolic link"):
            list(find_mail(link))
    other = tmp_path / "other"
    (other / "new").mkdir(parents=True)
    (other / "cur").symlink_to(box / "cur")
    left_out: list[str] = []
    assert list(find_mail(other, left_out.append)) == []
    assert left_out == [f"left out {other / 'cur'}: a symbolic link"]


def test_a_file_that_becomes_a_link_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "a.eml"
    file.write_text("Subject: x\n\n")
    [mail] = find_mail(file)
    file.unlink()
    file.symlink_to("/etc/hostname")
    with pytest.raises(FileNotFoundError, match="Not a regular file"):
        list(mail.lines())


def test_no_folder_is_exported_into_another_directory(tmp_path: Path) -> None:
    box = maildir(tmp_path / "box")
    put(maildir(box / "..."), "1.a.host:2,")
    export_eml(stored_mail(list_folders(box)), tmp_path / "out" / "eml")
    assert [one.relative_to(tmp_path / "out") for one in (tmp_path / "out").rglob("*.eml")] == [
        Path("eml/.../1.a.host.eml")
    ]


def test_a_line_of_any_length_is_exported_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mail_export, "_LINE_BYTES_MAX", 10)
    text = b"From " * 200_000
    content = b"Subject: x\r\n\r\n" + b"x" + text + b"\r\nFrom y\r\n"
    box = maildir(tmp_path / "box")
    put(box, "1.a.host:2,", content)
    assert export_mbox(stored_mail(list_folders(box)), tmp_path / "all.mbox") == 1
    [written] = [(tmp_path / "all.mbox").read_bytes()]
    assert written.partition(b"\n")[2] == b"Subject: x\n\nx" + text + b"\n>From y\n\n"


STATE = MessageState(categories=("Größe", "x" * 255), is_complete=True, due_us=5, modified_us=7)


def write_state(box: Path, file_name: str, state: MessageState) -> None:
    name, states = parse_name(file_name), StateFile(box)
    assert name is not None
    states.write({name.message_id: state})
    states.close()


def state_of(box: Path, file_name: str) -> bytes:
    name, states = parse_name(file_name), StateFile(box)
    assert name is not None
    try:
        return states.find(name.message_id)
    finally:
        states.close()


def exported(box: Path, folder: Path, kind: str) -> Path:
    folder.mkdir(exist_ok=True)
    target = folder / ("all.mbox" if kind == "mbox" else "all")
    write = {"eml": export_eml, "mbox": export_mbox, "maildir": export_maildir}[kind]
    states = MailStates(box, SystemClock())
    try:
        assert write(stored_mail(list_folders(box), states), target)
    finally:
        states.close()
    return target


def imported(box: Path, source: Path) -> tuple[int, int]:
    importing = MailImport(box, box, hostname="host")
    for mail in find_mail(source):
        importing.add(mail)
    importing.finish()
    return importing.imported, importing.present


@pytest.mark.parametrize("content", [b"Subject: x\r\n\r\nx\r\n", b"Subject: x\n\nx\nFrom y\n"])
@pytest.mark.parametrize("kind", ["eml", "mbox", "maildir"])
def test_a_state_goes_with_its_message(tmp_path: Path, kind: str, content: bytes) -> None:
    box, other = maildir(tmp_path / "box"), maildir(tmp_path / "other")
    put(box, "1.a.host:2,S", content)
    put(box, "2.a.host:2,S", b"X-Relay-Properties: e30=\r\n" + content)  # not Relay's
    write_state(box, "1.a.host:2,S", STATE)
    assert imported(other, exported(box, tmp_path, kind)) == (1, 1)  # the second is equal
    [file] = [one for one in other.rglob("*host*") if one.is_file()]
    assert file.read_bytes() == content.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    assert state_of(other, file.name) == encode_state(STATE)


@pytest.mark.parametrize("kind", ["eml", "mbox", "maildir", "none"])
def test_flags_and_times_go_with_their_messages(tmp_path: Path, kind: str) -> None:
    box, other = maildir(tmp_path / "box"), maildir(tmp_path / "other")
    names = ["cur/1.a:2,", "cur/2.a:2,S", "cur/3.a:2,FRS", "new/4.a", "new/5.a:2,S", "cur/6.a:2,OS"]
    for number, name in enumerate(names, start=1):
        (box / name).write_bytes(b"Subject: %d\r\n\r\nx\r\n" % number)
        os.utime(box / name, (number, number))
    write_state(box, "3.a:2,FRS", STATE)
    source = box if kind == "none" else exported(box, tmp_path, kind)
    assert imported(other, source) == (6, 0)
    found = {
        one.read_bytes()[9:10]: (one.name.partition(":2,")[2], one.stat().st_mtime)
        for one in other.rglob("*host*")
    }
    assert found == {
        b"%d" % at: (name.partition(":2,")[2], at) for at, name in enumerate(names, start=1)
    }
    [flagged] = other.rglob("*FRS")
    assert state_of(other, flagged.name) == (b"" if kind == "none" else encode_state(STATE))


def test_a_file_without_octets_adds_none_to_the_message_before_it(tmp_path: Path) -> None:
    box, other = maildir(tmp_path / "box"), maildir(tmp_path / "other")
    put(box, "1.a.host:2,")
    put(box, "2.a.host:2,", b"")
    assert imported(other, exported(box, tmp_path, "mbox")) == (1, 0)
    [file] = other.rglob("*host*")
    assert file.read_bytes() == (box / "cur/1.a.host:2,").read_bytes()


@pytest.mark.parametrize("kind", ["eml", "mbox", "maildir"])
def test_a_field_of_the_message_itself_does_not_become_its_state(tmp_path: Path, kind: str) -> None:
    box, other = maildir(tmp_path / "box"), maildir(tmp_path / "other")
    field = b"x-relay-properties: S;" + b64encode(encode_state(STATE))
    put(box, "1.a.host:2,", field + b"\r\nSubject: x\r\n\r\nx\r\n")
    assert imported(other, exported(box, tmp_path, kind)) == (1, 0)
    assert not (other / "relay-properties").exists()
    assert [*other.rglob("*:2,S")] == []


def test_a_message_that_comes_back_without_a_state_has_none(tmp_path: Path) -> None:
    box, other = maildir(tmp_path / "box"), maildir(tmp_path / "other")
    put(box, "1.a.host:2,")
    os.utime(box / "cur/1.a.host:2,", (5, 5))
    before = exported(box, tmp_path / "before", "eml")
    write_state(box, "1.a.host:2,", STATE)
    after = exported(box, tmp_path / "after", "eml")
    for source, state in ((after, encode_state(STATE)), (before, b"")):
        assert imported(other, source) == (1, 0)
        [file] = other.rglob("*host*")
        assert state_of(other, file.name) == state
        file.unlink()
    (other / "relay-properties").write_bytes(b"no database " * 500)
    assert imported(other, before) == (1, 0)  # mail without a state needs none


DELIVERED, MOVED = delivered_base_name("0123456789abcdef.1", hostname="h"), "1700000000.M1P1.imap"
MAIL = f"X-Relay-Id: {delivered_id('0123456789abcdef.1')}\r\nSubject: x\r\n\r\nx\r\n".encode()
DAMAGE = {
    "current": lambda _box: None,
    "missing": lambda box: (box / "relay-index").unlink(),
    "damaged": lambda box: (box / "relay-index").write_bytes(b"no database " * 500),
}


@pytest.mark.parametrize("index", DAMAGE)
@pytest.mark.parametrize("is_read_only", [False, True])
def test_a_message_moved_by_a_mail_server_has_its_state_and_a_copy_what_the_index_knows(
    tmp_path: Path, index: str, *, is_read_only: bool
) -> None:
    """An index that sees a copy appear gives it the state of its original."""
    copied, moved = maildir(tmp_path / "copied"), maildir(tmp_path / "moved")
    for box in (copied, moved):
        put(box, DELIVERED + ":2,S", MAIL)
        write_state(box, DELIVERED, STATE)
        exported(box, tmp_path / "first", "eml")  # its index is current
        (maildir(box / ".Archive") / f"cur/{MOVED}:2,S").write_bytes(MAIL)
    (moved / f"cur/{DELIVERED}:2,S").unlink()
    of_copied = {"INBOX"} | ({"Archive"} if index == "current" and not is_read_only else set())
    for box, expected in ((copied, of_copied), (moved, {"Archive"})):
        DAMAGE[index](box)
        with read_only(box) if is_read_only else nullcontext():
            target = exported(box, tmp_path / f"from-{box.name}", "eml")
        found = {
            one for one in target.rglob("*.eml") if b"Properties: S;\r\n ey" in one.read_bytes()
        }
        assert {one.parent.name for one in found} == expected


def test_a_copy_that_became_the_message_has_both_states(tmp_path: Path) -> None:
    box, other = maildir(tmp_path / "box"), maildir(tmp_path / "other")
    write_state(box, DELIVERED, MessageState(importance="high", modified_us=5))
    write_state(box, f"{MOVED}:2,S", MessageState(is_other=True, modified_us=6))
    put(box, f"{MOVED}:2,S", MAIL)  # the index gives it the id that it claims
    assert imported(other, exported(box, tmp_path / "out", "eml")) == (1, 0)
    [file] = other.rglob("*host*")
    expected = MessageState(importance="high", is_other=True, modified_us=6)
    assert state_of(other, file.name) == encode_state(expected)


def test_a_message_of_another_program_that_a_mail_server_moved_has_its_state(
    tmp_path: Path,
) -> None:
    box = maildir(tmp_path / "box")
    put(box, "1600000000.M1.h:2,")
    write_state(box, "1600000000.M1.h:2,", STATE)
    exported(box, tmp_path / "before", "eml")
    (maildir(box / ".Archive") / f"cur/{MOVED}:2,").hardlink_to(box / "cur/1600000000.M1.h:2,")
    (box / "cur/1600000000.M1.h:2,").unlink()
    other = maildir(tmp_path / "other")
    assert imported(other, exported(box, tmp_path / "after", "eml")) == (1, 0)
    [file] = other.rglob("*host*")
    assert state_of(other, file.name) == encode_state(STATE)


@pytest.mark.parametrize(
    "field", [b"X-Relay-Properties: no base64", b"X-Relay-Properties: " + b"e30K" * 100_000]
)
def test_a_field_that_is_no_state_is_dropped(tmp_path: Path, field: bytes) -> None:
    box = maildir(tmp_path / "box")
    file = tmp_path / "one.eml"
    file.write_bytes(field + b"\r\nSubject: x\r\n\r\nx\r\n")
    importing = MailImport(box, box, hostname="host")
    for mail in find_mail(file):
        importing.add(mail)
    importing.finish()
    assert importing.imported == 1
    assert not (box / "relay-properties").exists()


DAMAGED = {
    "a bare CR": b"Subject: x\r\n\r\nx\r\r\ny\r\n",
    "several": b"Subject: x\r\n\r\n\r\r\r\nx\r\r\r\n\r\r\n\r\r\n",
    "in a line": b"Subject: x\r\n\r\na\rb\r\n\rc\r\n",
    "in the first line": b"Subject: x\r\r\nA: b\r\r\n\r\nx\r\nFrom x\r\n",
    "in every line": b"Subject: x\r\r\nx\r\r\nFrom x\r\r\n\r\r\n",
    "in a header": b"Subject: x\r\nA: b\r\r\n\r\nx\r\n",
    "before From": b"Subject: x\r\n\r\n\r\r\nFrom x\r\n",
    "a CRLF between blocks": b"Subject: x\r\n\r\n" + b"x" * 65535 + b"\r\nx\r\n",
    "a bare CR between blocks": b"Subject: x\r\n\r\n" + b"x" * 65535 + b"\r\r\nx\r\n",
    "two between blocks": b"Subject: x\r\n\r\n" + b"x" * 65534 + b"\r\r\r\nx\r\n",
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_mbox_gives_every_octet_back(tmp_path: Path, content: bytes) -> None:
    box, other = maildir(tmp_path / "box"), maildir(tmp_path / "other")
    put(box, "1.a.host:2,", content)
    put(box, "2.a.host:2,", b"Subject: after\r\n\r\nx\r\n")
    assert export_mbox(stored_mail(list_folders(box)), tmp_path / "all.mbox") == 2
    importing = MailImport(other, other, hostname="host")
    for mail in find_mail(tmp_path / "all.mbox"):
        importing.add(mail)
    imported = {one.read_bytes() for one in (other / "new").iterdir()}
    assert imported == {content, b"Subject: after\r\n\r\nx\r\n"}


@pytest.mark.parametrize(
    "octets",
    [
        b"From a@b Thu Jan  1 00:00:00 1970\r\nSubject: x\r\n\r\nx\r\n\r\n",
        b"From a@b Thu Jan  1 00:00:00 1970\nSubject: x\r\n\r\nx\r\n\n",
        b"From a@b Thu Jan  1 00:00:00 1970\nSubject: x\n\nx\n\n",
        b"From a@b Thu Jan  1 00:00:00 1970\r\nSubject: x\n\nx\n\n",
    ],
    ids=["CRLF", "CRLF after a line with LF", "LF", "LF after a line with CRLF"],
)
def test_line_ends_of_mbox_files_become_crlf(tmp_path: Path, octets: bytes) -> None:
    box, file = maildir(tmp_path / "box"), tmp_path / "theirs"
    file.write_bytes(octets)
    importing = MailImport(box, box, hostname="host")
    importing.add(*find_mail(file))
    [imported] = (box / "new").iterdir()
    assert imported.read_bytes() == b"Subject: x\r\n\r\nx\r\n"


@pytest.mark.parametrize("octets", range(65533, 65537))
def test_a_line_end_between_two_blocks_stays_one(tmp_path: Path, octets: int) -> None:
    box, file = maildir(tmp_path / "box"), tmp_path / "long.eml"
    content = b"Subject: x\r\n\r\n" + b"x" * octets + b"\r\ny\r\n"
    file.write_bytes(content)
    importing = MailImport(box, box, hostname="host")
    importing.add(*find_mail(file))
    [imported] = (box / "new").iterdir()
    assert imported.read_bytes() == content


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.eml")
    with pytest.raises(BadMailError, match=r"pipe\.eml: found no regular file"):
        list(find_mail(tmp_path))


def test_a_file_from_before_1970_is_imported(tmp_path: Path) -> None:
    box = maildir(tmp_path / "box")
    file = tmp_path / "old.eml"
    file.write_bytes(b"Subject: x\r\n\r\nx\r\n")
    os.utime(file, (-86400, -86400))
    importing = MailImport(box, box, hostname="host")
    importing.add(*find_mail(file))
    assert importing.imported == 1


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_message_in_mbox_may_follow_no_empty_line(tmp_path: Path, end: str) -> None:
    """As Thunderbird and Netscape wrote them. Python's mailbox takes each "From " for a message."""
    lines = [
        "From - ", "Subject: 1", "", "--a--",
        "From - ", "Message-ID: <2@x>", "", "--b--",
        "From joe@a.test  Mon Jun  3 12:50:27 1996", "Subject: 3", "", "We come",
        "From Russia with love", "Year: 1963",
        'From "a b"@a.test Fri Nov 8 18:21:51 1996 +0100', "no header", "",
        "From joe@a.test Thu Feb  8 18:49:08 1996", "Subject: 4", "", "last",
        "From - Thu Feb  8 18:49:08 1996",
    ]  # fmt: skip
    file = tmp_path / "some.mbox"
    file.write_bytes(end.join(lines).encode())
    notes: list[str] = []
    found = list(find_mail(file, notes.append))
    texts = [b"".join(one.lines()).decode() for one in found]
    assert texts == [
        end.join(lines[1:4]) + end,
        end.join(lines[5:8]) + end,
        end.join(lines[9:16]) + end,
        end.join(lines[18:]),
    ]
    assert [one.place for one in found] == [f"{file}:{number}" for number in (1, 5, 9, 18)]
    assert found[2].at_s == 833_806_227
    assert notes == [
        f"{file}: line 5, 9: a message begins without an empty line before it",
        f"{file}: line 13, 15, 22: part of a message: after no empty line, without a date or a header after it",
    ]  # fmt: skip


def test_notes_of_an_mbox_are_short_and_its_lines_may_be_long(tmp_path: Path) -> None:
    file = tmp_path / "some.mbox"
    file.write_bytes(
        b"From -\nA: b\n\n" + b"x" * 70_000 + b"From - \n" + b"From -\nA: b\n\nx\n" * 30
    )
    notes: list[str] = []
    assert len(list(find_mail(file, notes.append))) == 31
    [note] = notes
    numbers = ", ".join(str(5 + 4 * one) for one in range(20))
    assert note.startswith(f"{file}: line {numbers} and 10 more: ")
