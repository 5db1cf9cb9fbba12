"""Mail files and folders with unusual names and lines, as other programs may have left them."""

import os
from pathlib import Path

import pytest

from relay.app.commands import mail_export
from relay.app.commands.mail_export import export_eml, export_maildir, export_mbox, stored_mail
from relay.app.commands.mail_import import BadMailError, MailImport, find_mail
from relay.mailbox.folders import list_folders

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
