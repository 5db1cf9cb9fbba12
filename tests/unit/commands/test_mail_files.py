"""Mail files and folders with unusual names and lines, as other programs may have left them."""

import os
from pathlib import Path

import pytest

from relay.commands import mail_export
from relay.commands.mail_export import export_eml, export_maildir, export_mbox, stored_mail
from relay.commands.mail_import import BadMailError, MailImport, find_mail
from relay.mailbox.folders import list_folders
from relay.mailbox.message_file import parse_name
from relay.mailbox.message_state import MessageState, encode_state
from relay.mailbox.state_file import StateFile

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


@pytest.mark.parametrize("content", [b"Subject: x\r\n\r\nx\r\n", b"Subject: x\n\nx\nFrom y\n"])
@pytest.mark.parametrize("kind", ["eml", "mbox", "maildir"])
def test_a_state_goes_with_its_message(tmp_path: Path, kind: str, content: bytes) -> None:
    box, other = maildir(tmp_path / "box"), maildir(tmp_path / "other")
    put(box, "1.a.host:2,S", content)
    put(box, "2.a.host:2,S", b"X-Relay-Properties: e30=\r\n" + content)  # not Relay's
    states = StateFile(box)
    name = parse_name("1.a.host:2,S")
    assert name is not None
    states.write({name.message_id: STATE})
    target = tmp_path / ("all.mbox" if kind == "mbox" else "all")
    write = {"eml": export_eml, "mbox": export_mbox, "maildir": export_maildir}[kind]
    assert write(stored_mail(list_folders(box), states), target) == 2
    states.close()
    importing = MailImport(other, other, hostname="host")
    for mail in find_mail(target):
        importing.add(mail)
    importing.finish()
    assert (importing.imported, importing.present) == (1, 1)  # the second is the first without it
    [file] = [one for one in other.rglob("*host*") if one.is_file()]
    assert file.read_bytes() == content.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    imported = parse_name(file.name)
    states = StateFile(other)
    assert imported is not None
    assert states.find(imported.message_id) == encode_state(STATE)
    states.close()


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
