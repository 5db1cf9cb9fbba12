"""Mail files and folders with unusual names and lines, as other programs may have left them."""

import os
from pathlib import Path

import pytest

from relay.operation.commands.mail_import import BadMailError, MailImport, find_mail

INBOX = ("tmp", "new", "cur")


def maildir(path: Path) -> Path:
    for name in INBOX:
        (path / name).mkdir(parents=True)
    return path


def put(mailbox: Path, name: str, content: bytes = b"Subject: x\r\n\r\nx\r\n") -> None:
    (mailbox / "cur" / name).write_bytes(content)


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


def imported(box: Path, source: Path) -> tuple[int, int]:
    importing = MailImport(box, box, hostname="host")
    for mail in find_mail(source):
        importing.add(mail)
    importing.finish()
    return importing.imported, importing.present


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


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_message_in_mbox_may_follow_no_empty_line(tmp_path: Path, end: str) -> None:
    """As Thunderbird and Netscape wrote them. Python's mailbox takes each "From " for a message."""
    lines = [
        "From - ",
        "Subject: 1",
        "",
        "--a--",
        "From - ",
        "Message-ID: <2@x>",
        "",
        "--b--",
        "From joe@a.test  Mon Jun  3 12:50:27 1996",
        "Subject: 3",
        "",
        "We come",
        "From Russia with love",
        "Year: 1963",
        'From "a b"@a.test Fri Nov 8 18:21:51 1996 +0100',
        "no header",
        "",
        "From joe@a.test Thu Feb  8 18:49:08 1996",
        "Subject: 4",
        "",
        "last",
        "From - Thu Feb  8 18:49:08 1996",
    ]
    file = tmp_path / "some.mbox"
    file.write_bytes(end.join(lines).encode())
    found = list(find_mail(file))
    texts = [b"".join(one.lines()).decode() for one in found]
    assert texts == [
        end.join(lines[1:4]) + end,
        end.join(lines[5:8]) + end,
        end.join(lines[9:16]) + end,
        end.join(lines[18:]),
    ]
    assert [one.place for one in found] == [f"{file}:{number}" for number in (1, 5, 9, 18)]
    assert found[2].at_s == 833_806_227


def test_a_long_line_of_an_mbox_is_no_separator(tmp_path: Path) -> None:
    file = tmp_path / "some.mbox"
    file.write_bytes(
        b"From -\nA: b\n\n" + b"x" * 70_000 + b"From - \n" + b"From -\nA: b\n\nx\n" * 30
    )
    assert len(list(find_mail(file))) == 31


def test_a_file_from_before_1970_is_imported(tmp_path: Path) -> None:
    box = maildir(tmp_path / "box")
    file = tmp_path / "old.eml"
    file.write_bytes(b"Subject: x\r\n\r\nx\r\n")
    os.utime(file, (-86400, -86400))
    importing = MailImport(box, box, hostname="host")
    importing.add(*find_mail(file))
    assert importing.imported == 1
