"""Dovecot and Relay on one Maildir at the same time: what one does, the other sees, and nobody complains."""

import base64
import os
import threading
from collections.abc import Iterator

import pytest

from tests.support.dovecot import Dovecot, NoDovecotError, quoted
from tests.support.relay_process import RelayProcess, until

OWNER = "alice"
GUEST = "guest@remote.test"


@pytest.fixture
def dovecot(relay) -> Iterator[Dovecot]:
    """Dovecot on alice's mailbox; whatever it complains of fails the test."""
    assert relay.graph("GET", "/me/mailFolders").status == 200  # makes the mailbox
    try:
        with Dovecot(relay.home(OWNER)) as started:
            yield started
            started.fetch("size.physical size.virtual hdr body")
            assert started.complaints() == []
    except NoDovecotError as why:
        pytest.skip(str(why))


def arrives(relay: RelayProcess, subject: str, *, text: str = "Hello.") -> str:
    """A message from outside comes into alice's Inbox; return its Graph id."""
    content = f"Subject: {subject}\r\n\r\n{text}\r\n".encode()
    relay.until_final(relay.submit(GUEST, [f"{OWNER}@example.test"], content))
    return found(relay, subject)["id"]


def found(relay: RelayProcess, subject: str, folder: str = "inbox") -> dict:
    """The message of a subject, as Graph lists it."""
    [message] = [one for one in relay.messages(folder) if one["subject"] == subject]
    return message


LINES = b"""\
MIME-Version: 1.0
Content-Type: multipart/mixed; boundary=b

--b

one
two

--b
Content-Type: text/csv; name=a.csv
Content-Disposition: attachment; filename=a.csv

%s
--b
Content-Type: message/rfc822

Subject: inner

a
--b--
"""


def as_read(relay: RelayProcess, message: dict) -> list:
    """What Graph gives of a message, from MIME-Version on: its content, body and files."""
    path = f"/me/messages/{message['id']}"
    value = relay.graph("GET", f"{path}/$value").body
    files = relay.graph("GET", f"{path}/attachments").json()["value"]
    octets = [relay.graph("GET", f"{path}/attachments/{one['id']}/$value").body for one in files]
    if not message["isDraft"]:  # the file of a draft has more than its content
        answer = relay.graph("GET", f"/me/messages?$search=%22size={len(value)}%22")
        assert message["id"] in [one["id"] for one in answer.json()["value"]]
    facts = [(one["name"], one["size"], one.get("contentBytes")) for one in files]
    return [value[value.index(b"MIME-Version") :], octets, facts, message["body"]["content"]]


@pytest.mark.parametrize("lines", [2, 400_000])  # the latter are not held in memory
def test_a_message_has_crlf_however_it_came(relay, dovecot, lines):
    content = LINES % (b"x;y\n" * lines)
    smtp, imap, graph, copy = (
        b"Subject: %s\n%s" % (way, content) for way in (b"smtp", b"imap", b"graph", b"copy")
    )
    relay.until_final(relay.submit(GUEST, [f"{OWNER}@example.test"], smtp.replace(b"\n", b"\r\n")))
    with dovecot.session() as session:
        session.append("INBOX", "", None, imap.replace(b"\n", b"\r\n"))
    inbox, kind = "/me/mailFolders/inbox/messages", {"Content-Type": "text/plain"}
    assert relay.graph("POST", inbox, base64.b64encode(graph), headers=kind).status == 201
    copy = copy.replace(b"\n", b"\r\n", 1)  # another program has added a line to it
    (relay.home(OWNER) / "new/1795990711.M1P1.host").write_bytes(copy)
    binary = b"Content-Transfer-Encoding: binary\nContent-Type: text/csv"
    binary = LINES.replace(b"Content-Type: text/csv", binary).replace(b"\n", b"\r\n")
    binary %= (png := b"PNG\r\n\x1a\n\n\r\r\nX" * lines)
    (relay.home(OWNER) / "new/1795990712.M1P1.host").write_bytes(b"Subject: png\r\n" + binary)
    [appended] = relay.home(OWNER).glob("[cn]*/*,W=*")
    assert b"\r\n" not in appended.read_bytes()
    read = {one["subject"]: as_read(relay, one) for one in relay.messages("inbox")}
    crlf = content.replace(b"\n", b"\r\n")
    assert read["smtp"][:2] == [crlf, [b"x;y\r\n" * lines, b"Subject: inner\r\n\r\na"]]
    for way in ("imap", "graph", "copy"):
        assert read[way] == read["smtp"], way
    assert read["png"][:2] == [binary, [png, b"Subject: inner\r\n\r\na"]]
    assert appended.read_bytes().endswith(content)


def a_draft(relay: RelayProcess, subject: str, folder: str = "drafts") -> str:
    answer = relay.graph("POST", f"/me/mailFolders/{folder}/messages", {"subject": subject})
    assert answer.status == 201, answer.body
    return str(answer.json()["id"])


def test_it_shows_what_relay_writes(relay, dovecot):
    sent = relay.send_mail(to=["bob@example.test", "nobody@example.test"], subject="to two")
    relay.until_final(sent)
    until("the report", lambda: relay.messages("inbox"))
    a_draft(relay, "Entwurf")
    relay.graph(
        "POST",
        "/me/messages",
        {
            "subject": "mit Anhang 添付",
            "attachments": [
                {
                    "@odata.type": "#microsoft.graph.fileAttachment",
                    "name": "Отчёт.txt",
                    "contentType": "text/plain",
                    "contentBytes": "aGVsbG8=",
                }
            ],
        },
    )

    with dovecot.session() as imap:
        assert imap.folders() >= {"INBOX", "Drafts", "Sent", "Trash", "Junk", "Archive"}
        assert imap.folders("LSUB") == {"Drafts", "Sent", "Trash", "Junk", "Archive"}
        assert imap.flags("INBOX") == {"Undeliverable: to two": set()}
        assert imap.flags("Sent") == {"to two": {"\\Seen"}}
        drafts = imap.flags("Drafts")
        assert drafts.pop("Entwurf") == {"\\Draft", "\\Seen"}
        assert list(drafts.values()) == [{"\\Draft", "\\Seen"}]
        imap.enter("INBOX")
        [(_, report), *_] = imap.uid("FETCH", "1:*", "BODY[]")[1]
    [file] = list(relay.home(OWNER).glob("cur/*"))
    assert file.read_bytes() == report
    sizes = dovecot.fetch("size.physical", form="tab").split()[1:]
    on_disk = [path.stat().st_size for path in relay.home(OWNER).glob("**/cur/*")]
    assert sorted(map(int, sizes)) == sorted(on_disk)


def test_flags_go_both_ways(relay, dovecot):
    first, second = arrives(relay, "first"), arrives(relay, "second")
    with dovecot.session() as imap:
        imap.enter("INBOX")
        flags = "(\\Seen \\Flagged \\Answered $Forwarded urgent)"
        imap.uid("STORE", imap.uid_of("first"), "+FLAGS.SILENT", flags)
        imap.uid("STORE", imap.uid_of("second"), "+FLAGS.SILENT", "(urgent)")
    message = relay.graph("GET", f"/me/messages/{first}").json()
    assert (message["isRead"], message["flag"]["flagStatus"]) == (True, "flagged")
    assert relay.graph("GET", f"/me/messages/{second}").json()["isRead"] is False

    change = {"isRead": False, "flag": {"flagStatus": "notFlagged"}}
    assert relay.graph("PATCH", f"/me/messages/{first}", change).status == 200
    assert relay.graph("PATCH", f"/me/messages/{second}", {"isRead": True}).status == 200
    with dovecot.session() as imap:
        assert imap.flags() == {
            "first": {"\\Answered", "$Forwarded", "urgent"},
            "second": {"\\Seen", "urgent"},
        }


def tag(imap, subject: str, folder: str, *keywords: str) -> None:
    imap.enter(folder)
    imap.uid("STORE", imap.uid_of(subject), "+FLAGS.SILENT", f"({' '.join(keywords)})")


def test_keywords_go_with_messages_that_are_moved_and_copied(relay, dovecot):
    first, second = arrives(relay, "first"), arrives(relay, "second")
    a_draft(relay, "there", "archive")
    with dovecot.session() as open_all_the_time, dovecot.session() as imap:
        tag(imap, "there", "Archive", "other")
        tag(open_all_the_time, "there", "Archive", "third")
        tag(imap, "first", "INBOX", "\\Seen", "$label1", "Work", "Other")
        tag(imap, "second", "INBOX", "$label2")
        for identity in (first, second):
            move = relay.graph(
                "POST", f"/me/messages/{identity}/move", {"destinationId": "archive"}
            )
            assert move.status == 201
        assert relay.graph("DELETE", f"/me/messages/{second}").status == 204
        kept = {"\\Seen", "$label1", "Work", "other"}
        there = {"\\Draft", "\\Seen", "other", "third"}
        for session in (open_all_the_time, imap):
            assert session.flags("Archive") == {"first": kept, "there": there}
            assert session.flags("Trash") == {"second": {"$label2"}}
        # back by Dovecot, into a folder that has had other letters since, and there again
        tag(open_all_the_time, "there", "Archive", "fourth")
        imap.enter("Archive")
        imap.uid("MOVE", imap.uid_of("first"), "Junk")
        assert imap.flags("Junk") == {"first": kept}
        copy = relay.graph("POST", f"/me/messages/{first}/copy", {"destinationId": "deleteditems"})
        assert copy.status == 201
        for session in (open_all_the_time, imap):
            assert session.flags("Trash")["first"] == kept
            assert session.flags("Archive") == {"there": there | {"fourth"}}
    with dovecot.session() as imap:
        assert imap.flags("Trash") == {"first": kept, "second": {"$label2"}}


def a_message_in(relay, folder) -> str:
    """Let a message come into a folder on its own way; return its id."""
    match folder:
        case "INBOX":
            return arrives(relay, "wanders")
        case "Sent":
            identity = relay.send_mail(to=["bob@example.test"], subject="wanders")
            until("it is filed", lambda: relay.messages("sentitems"))
            return identity
        case _:
            return a_draft(relay, "wanders")


def test_a_message_that_is_moved_keeps_its_id(relay, dovecot):
    """Also where Dovecot copies its content, and so its line ends are LF."""
    for number, folder in enumerate(("INBOX", "Sent", "Drafts", "INBOX", "Sent", "Drafts")):
        identity, copies = a_message_in(relay, folder), number > 2
        if copies:  # it links no file between folders that differ
            (relay.home("alice") / ".Archive").chmod(0o770)
        with dovecot.session() as imap:
            imap.enter(folder)
            imap.uid("MOVE", "1:*", "Archive")
            [message] = relay.messages("archive")
            assert (message["id"], message["subject"]) == (identity, "wanders")
            [file] = (relay.home("alice") / ".Archive").glob("[cn]*/*,*")
            assert not copies or b"\r\n" not in file.read_bytes()
            imap.enter("Archive")
            imap.uid("MOVE", "1:*", "Junk")
        found = relay.graph("GET", f"/me/messages/{identity}").json()
        assert found["parentFolderId"] == "junkemail"
        assert relay.graph("POST", f"/me/messages/{identity}/permanentDelete").status == 204


def test_copies_appended_and_expunged_messages_are_seen(relay, dovecot):
    first = arrives(relay, "first")
    with dovecot.session() as imap:
        imap.enter("INBOX")
        imap.uid("COPY", "1", "Archive")
        imap.append("Archive", "(\\Seen)", None, b"Subject: appended\r\n\r\nx\r\n")
        archived = {one["subject"]: one for one in relay.messages("archive")}
        assert set(archived) == {"first", "appended"}
        assert archived["appended"]["isRead"] is True
        assert archived["first"]["id"] != first
        assert found(relay, "first")["id"] == first
        imap.enter("INBOX")
        imap.uid("STORE", "1", "+FLAGS.SILENT", "(\\Deleted)")
        imap.expunge()
    assert relay.messages("inbox") == []
    # What a client without MOVE copies and expunges at once was moved, to whoever knows its id.
    there = {one["subject"]: one["id"] for one in relay.messages("archive")}
    assert there == {"first": first, "appended": archived["appended"]["id"]}


def test_a_copy_has_the_marks_that_relay_has_just_set(relay, dovecot):
    first = arrives(relay, "first")
    with dovecot.session() as imap:
        imap.enter("INBOX")
        change = {"isRead": True, "flag": {"flagStatus": "flagged"}}
        assert relay.graph("PATCH", f"/me/messages/{first}", change).status == 200
        imap.uid("COPY", "1", "Archive")
        [copy] = relay.messages("archive")
        assert (copy["isRead"], copy["flag"]["flagStatus"]) == (True, "flagged")
        assert imap.flags("Archive") == {"first": {"\\Seen", "\\Flagged"}}


def changes(relay: RelayProcess, link: str = "") -> tuple[dict[str, dict], str]:
    """A round of a delta query of the Inbox: its items by id, and the link of the next round."""
    path = link.partition("/v1.0")[2] or "/me/mailFolders/inbox/messages/delta?$top=100"
    answer = relay.graph("GET", path).json()
    return {one["id"]: one for one in answer["value"]}, answer["@odata.deltaLink"]


def test_a_delta_query_has_what_it_flags_moves_expunges_and_appends(relay, dovecot):
    read, moved, copied, gone, kept = [
        arrives(relay, subject) for subject in ("read", "moved", "copied", "gone", "kept")
    ]
    first, link = changes(relay)
    assert set(first) == {read, moved, copied, gone, kept}
    with dovecot.session() as imap:
        imap.enter("INBOX")
        imap.uid("STORE", imap.uid_of("read"), "+FLAGS.SILENT", "(\\Seen)")
        imap.uid("MOVE", imap.uid_of("moved"), "Archive")
        imap.uid("COPY", imap.uid_of("copied"), "Archive")
        for subject in ("copied", "gone"):
            imap.uid("STORE", imap.uid_of(subject), "+FLAGS.SILENT", "(\\Deleted)")
        imap.expunge()
        imap.append("INBOX", "", None, b"Subject: appended\r\n\r\nx\r\n")
    second, link = changes(relay, link)
    assert second.pop(read)["isRead"] is True
    assert second.pop(moved)["@removed"] == {"reason": "changed"}
    assert second.pop(copied)["@removed"] == {"reason": "changed"}
    assert second.pop(gone)["@removed"] == {"reason": "deleted"}
    assert [one["subject"] for one in second.values()] == ["appended"]
    assert changes(relay, link)[0] == {}


def folders(relay: RelayProcess, within: str = "msgfolderroot") -> dict[str, dict]:
    answer = relay.graph("GET", f"/me/mailFolders/{within}/childFolders?$top=100")
    return {one["displayName"]: one for one in answer.json()["value"]}


def test_folders_that_relay_makes_are_folders_there(relay, dovecot):
    made = relay.graph("POST", "/me/mailFolders", {"displayName": "Größe & Maß"}).json()["id"]
    children = f"/me/mailFolders/{made}/childFolders"
    assert relay.graph("POST", children, {"displayName": "example.com"}).status == 201
    inside = "/me/mailFolders/inbox/childFolders"
    child = relay.graph("POST", inside, {"displayName": "a/b"}).json()["id"]
    a_draft(relay, "in it", child)
    names = {"Gr&APYA3w-e &- Ma&AN8-", "Gr&APYA3w-e &- Ma&AN8-.example&ICQ-com", "INBOX.a&IhU-b"}
    with dovecot.session() as imap:
        assert names <= imap.folders()
        assert names <= imap.folders("LSUB")
        assert imap.flags("INBOX.a&IhU-b") == {"in it": {"\\Draft", "\\Seen"}}
        move = {"destinationId": made}
        assert relay.graph("POST", f"/me/mailFolders/{child}/move", move).status == 201
        change = {"displayName": "Neu"}
        assert relay.graph("PATCH", f"/me/mailFolders/{made}", change).status == 200
        assert imap.flags("Neu.a&IhU-b") == {"in it": {"\\Draft", "\\Seen"}}
    with dovecot.session() as imap:
        assert {"Neu", "Neu.a&IhU-b", "Neu.example&ICQ-com"} <= imap.folders()
        assert {"Neu", "Neu.a&IhU-b", "Neu.example&ICQ-com"} <= imap.folders("LSUB")
        assert relay.graph("DELETE", f"/me/mailFolders/{made}").status == 204
        assert imap.flags("Trash.Neu.a&IhU-b") == {"in it": {"\\Draft", "\\Seen"}}
        assert relay.graph("DELETE", f"/me/mailFolders/{made}").status == 204
    with dovecot.session() as imap:
        assert not [name for name in imap.folders() | imap.folders("LSUB") if "Neu" in name]


def test_folders_that_it_makes_and_renames_keep_their_ids(relay, dovecot):
    with dovecot.session() as imap:
        imap.ok("CREATE", quoted("Projekte.&ZeVnLIqe-"))
        imap.ok("CREATE", quoted("Projekte"))
        projects = folders(relay)["Projekte"]
        [(name, child)] = folders(relay, projects["id"]).items()
        assert (name, child["parentFolderId"]) == ("日本語", projects["id"])
        message = a_draft(relay, "in it", child["id"])
        imap.ok("RENAME", quoted("Projekte"), quoted("Archive.Alt"))
        assert folders(relay, "archive")["Alt"]["id"] == projects["id"]
        assert folders(relay, projects["id"])["日本語"]["id"] == child["id"]
        assert found(relay, "in it", child["id"])["id"] == message
        imap.ok("CREATE", quoted("Projekte"))
        assert folders(relay)["Projekte"]["id"] != projects["id"]
        imap.ok("DELETE", quoted("Archive.Alt.&ZeVnLIqe-"))
    assert relay.graph("GET", f"/me/mailFolders/{child['id']}").status == 404
    assert relay.graph("GET", f"/me/messages/{message}").status == 404


def test_both_work_at_once(relay, dovecot):
    count = 24
    stop = threading.Event()
    failures: list[Exception] = []

    def play() -> None:
        try:
            with dovecot.session() as imap:
                while not stop.is_set():
                    imap.enter("INBOX")
                    imap.uid("STORE", "1:*", "+FLAGS.SILENT", "(\\Flagged)")
                    imap.uid("MOVE", "1", "Archive")
        except Exception as error:  # noqa: BLE001 - it is reported by the test
            failures.append(error)

    player = threading.Thread(target=play)
    player.start()
    try:
        for number in range(count):
            content = f"Subject: number {number}\r\n\r\nHello.\r\n".encode()
            relay.until_final(relay.submit(GUEST, [f"{OWNER}@example.test"], content))
            for message in relay.messages("inbox")[:2]:
                relay.graph("PATCH", f"/me/messages/{message['id']}", {"isRead": True})
    finally:
        stop.set()
        player.join(20)
    assert failures == []
    everything = relay.graph("GET", "/me/messages?$top=100").json()["value"]
    assert sorted(one["subject"] for one in everything) == sorted(
        f"number {number}" for number in range(count)
    )
    assert len({one["id"] for one in everything}) == count
    assert relay.faults() == []


def test_what_it_makes_is_in_order(relay, dovecot):
    arrives(relay, "one")
    arrives(relay, "two")
    a_draft(relay, "Entwurf")
    with dovecot.session() as imap:
        imap.ok("CREATE", quoted("Kunden.2026"))
        imap.enter("INBOX")
        imap.uid("STORE", imap.uid_of("one"), "+FLAGS.SILENT", "(\\Seen urgent)")
        imap.uid("COPY", imap.uid_of("one"), quoted("Kunden.2026"))
        imap.uid("MOVE", imap.uid_of("two"), "Archive")
        imap.append("Kunden.2026", "(\\Seen)", None, b"Subject: three\r\n\r\nHello.\r\n")
        imap.enter("Drafts")
        imap.uid("COPY", imap.uid_of("Entwurf"), quoted("Kunden.2026"))
    assert len(relay.messages("archive")) == 1
    owner = (relay.folder / "mail").stat()
    for path in relay.home(OWNER).rglob("*"):  # where the tests run as root, Dovecot is another
        os.chown(path, owner.st_uid, owner.st_gid)
    os.chown(relay.home(OWNER), owner.st_uid, owner.st_gid)
    assert relay.cli_json("storage", "verify", "--full")["findings"] == []
    assert dovecot.complaints() == []
