"""Mail files and folders with unusual names and lines, as other programs may have left them."""

import os
from pathlib import Path

import pytest

from relay.base.clock import Ids, SystemClock
from relay.operation.commands.mail_import import (
    FOLDERS_MAX,
    BadMailError,
    FoundMail,
    MailImport,
    find_mail,
)
from relay.store.mailbox.folders import Folders
from relay.store.mailbox.message_file import parse_name

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


def find(*paths: Path) -> tuple[list[FoundMail], list[str]]:
    """Return the messages, and what was left out."""
    left_out: list[BadMailError] = []
    mails = [mail for path in paths for mail in find_mail(path, left_out.append)]
    return mails, [str(error) for error in left_out]


def test_an_import_follows_no_link(linked: tuple[Path, Path, list[Path]]) -> None:
    box, folder, links = linked
    mails, left_out = find(box, folder)
    assert [mail.path for mail in mails] == [box / "cur/1.a.host:2,", folder / "inner/a.eml"]
    links.append(folder / "away")
    assert sorted(left_out) == sorted(f"{link}: found a symbolic link" for link in links)


def test_a_link_is_neither_mail_nor_a_directory_of_a_maildir(
    linked: tuple[Path, Path, list[Path]], tmp_path: Path
) -> None:
    box, folder, links = linked
    for one in (box, folder, links[2]):
        link = tmp_path / f"to-{one.name}"
        link.symlink_to(one)
        with pytest.raises(BadMailError, match="found a symbolic link"):
            find(link)
    other = tmp_path / "other"
    (other / "new").mkdir(parents=True)
    (other / "cur").symlink_to(box / "cur")
    assert find(other) == ([], [f"{other / 'cur'}: found a symbolic link"])


@pytest.mark.parametrize("becomes", ["file", "directory"])
def test_what_becomes_a_link_is_not_read(tmp_path: Path, becomes: str) -> None:
    box, secret = maildir(tmp_path / "box"), tmp_path / "secret"
    put(box, "1.a.host:2,")
    secret.mkdir()
    (secret / "1.a.host:2,").write_text("Subject: secret\n\n")
    [mail], _ = find(box)
    if becomes == "file":
        mail.path.unlink()
        mail.path.symlink_to(secret / mail.path.name)
    else:
        (box / "cur").rename(tmp_path / "away")
        (box / "cur").symlink_to(secret)
    with pytest.raises(BadMailError, match="found no"):
        list(mail.lines())


def importing_into(box: Path) -> MailImport:
    return MailImport(box, hostname="host", ids=Ids(SystemClock()))


FOLDERS = {  # directories in a Maildir: the folder in which their messages are afterwards
    "": "",
    ".Sent": ".Sent",
    ".Archive.2025": ".Archive.2025",
    "Spam": ".Junk",
    "Deleted Messages": ".Trash",
    ".Lists.&AOQ-": ".Lists.&AOQ-",
    "Lists/\u00e4/deep": ".Lists.&AOQ-.deep",
    "INBOX": "",
    "a.b": ".a&ICQ-b",
}


def test_the_folders_of_a_maildir_are_imported(tmp_path: Path) -> None:
    box, source = maildir(tmp_path / "box"), tmp_path / "source"
    Folders(lambda _: box).mailbox("ann")
    for number, directory in enumerate((*FOLDERS, ".Drafts", "..DOVECOT-TRASHED")):
        maildir(source / directory)
        content = b"Subject: %d\r\n\r\nx\r\n" % number
        put(source / directory, "1.same.host:2,DS", content)
        put(source / directory, "2.same.host:2,S")
        (source / directory / "tmp/3.unfinished.host").touch()
        (source / directory / "dovecot-uidlist").touch()
    (source / "courierimapkeywords").mkdir()
    (source / "courierimapkeywords/:list").touch()
    (source / ".dovecot.sieve").symlink_to("/etc/hostname")
    importing = importing_into(box)
    for _ in range(2):
        mails, left_out = find(source)
        assert (len(mails), left_out) == (20, [])
        for mail in mails:
            importing.add(mail)
    # "INBOX" and the Maildir itself have the message 2.same
    assert (importing.imported, importing.present) == (19, 21)
    for number, directory in enumerate(FOLDERS.values()):
        contents = [path.read_bytes() for path in (box / directory / "cur").iterdir()]
        assert b"Subject: %d\r\n\r\nx\r\n" % number in contents
        assert not [path for path in (box / directory / "cur").iterdir() if "D" in path.name[-2:]]
    assert [*(box / ".Drafts/cur").glob("*:2,DS")]
    ids = {parse_name(path.name).message_id for path in box.rglob("cur/*")}  # type: ignore[union-attr]
    assert len(ids) == 19
    assert b"Lists\t&AOQ-\tdeep" in (box / "subscriptions").read_bytes()


@pytest.mark.parametrize("name", ["a..b", ".&AC8-", ".&AC4ALg-", ".a\n", ".A..B", ".~a"])
def test_a_folder_with_a_dangerous_name_is_left_out(tmp_path: Path, name: str) -> None:
    box = maildir(tmp_path / "box")
    put(maildir(tmp_path / "source" / name), "1.a.host:2,")
    [mail], _ = find(tmp_path / "source")
    with pytest.raises(BadMailError, match=r"1\.a\.host"):
        importing_into(box).add(mail)
    assert sorted(path.name for path in box.iterdir()) == sorted(INBOX)


def test_a_maildir_has_at_most_1000_folders(tmp_path: Path) -> None:
    for number in range(FOLDERS_MAX + 1):
        (tmp_path / f".{number}" / "new").mkdir(parents=True)
    with pytest.raises(BadMailError, match="more than 1000 folders"):
        find(tmp_path)


def test_files_with_the_header_of_a_message_are_imported_by_any_name(tmp_path: Path) -> None:
    mails = {
        "1": "X-A: b\nFrom: a@b.test\n c\n\nx\n",
        "2": "Return-Path:<>\r\n\r\n",
        "old": "From a@b Thu Jan  1 00:00:00 1970\nMessage-ID: <a@b>\n\nx\n",
    }
    others = {
        "no end": "From: a@b.test\n",
        "no mail": "Subject: x\n\nDate: x\n",
        "notes.txt": "From: here\nand there\n\nx\n",
    }
    for name, content in (mails | others).items():
        (tmp_path / name).write_text(content, newline="")
    found, left_out = find(tmp_path)
    assert [mail.path.name for mail in found] == [*mails]
    assert left_out == [
        f"{tmp_path / name}: found no header of a message, such as From: or Date:"
        for name in others
    ]


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
    importing = importing_into(box)
    importing.add(*find(file)[0])
    [imported] = (box / "new").iterdir()
    assert imported.read_bytes() == b"Subject: x\r\n\r\nx\r\n"


@pytest.mark.parametrize("octets", range(65533, 65537))
def test_a_line_end_between_two_blocks_stays_one(tmp_path: Path, octets: int) -> None:
    box, file = maildir(tmp_path / "box"), tmp_path / "long.eml"
    content = b"Subject: x\r\n\r\n" + b"x" * octets + b"\r\ny\r\n"
    file.write_bytes(content)
    importing = importing_into(box)
    importing.add(*find(file)[0])
    [imported] = (box / "new").iterdir()
    assert imported.read_bytes() == content


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.eml")
    text = f"{tmp_path / 'pipe.eml'}: found no regular file, expected mail"
    assert find(tmp_path) == ([], [text])


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
    found, _ = find(file)
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
    assert len(find(file)[0]) == 31


def test_a_file_from_before_1970_is_imported(tmp_path: Path) -> None:
    box = maildir(tmp_path / "box")
    file = tmp_path / "old.eml"
    file.write_bytes(b"Subject: x\r\n\r\nx\r\n")
    os.utime(file, (-86400, -86400))
    importing = importing_into(box)
    importing.add(*find(file)[0])
    assert importing.imported == 1
