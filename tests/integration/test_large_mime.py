"""Large MIME bodies over HTTP, not loaded into memory: sent, stored as drafts, replaced, rejected early."""

import base64
import hashlib
import http.client
import re
import socket
from collections.abc import Iterator

from tests.support.graph_client import Answer, people
from tests.support.long_tests import long
from tests.support.relay_process import RelayProcess, until
from tests.support.remotes import Remotes, received

CONTENT_BYTES = 20_000_000
GROWTH_BYTES_MAX = 15_000_000
HEADER = (
    b"To: bob@example.test, x@a.test\r\nSubject: large\r\nMessage-ID: <large@example.test>\r\n"
    b"MIME-Version: 1.0\r\nContent-Type: text/plain\r\n\r\n"
)
LINES = (
    b"0123456789 abcdefghijklmnopqrstuvwxyz 0123456789 abcdefghijklmnopqr\r\n" * 57
)  # whole groups
EXPECTED = hashlib.sha256(LINES * (CONTENT_BYTES // len(LINES))).hexdigest()


def content(size_bytes: int = CONTENT_BYTES, header: bytes = HEADER) -> Iterator[bytes]:
    yield header + b" " * (-len(header) % 3)
    for _ in range(size_bytes // len(LINES)):
        yield LINES


def coded(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """As base64 writes it to a file: in lines of 76."""
    for block in blocks:
        yield base64.encodebytes(block)


def upload(
    relay: RelayProcess, method: str, path: str, body: Iterator[bytes], *, kind: str = "text/plain"
) -> Answer:
    """Send a body as it comes; a refusal may come before its end."""
    host, _, port = str(relay.ready["http"][0]).rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=120)
    connection.putrequest(method, f"/v1.0{path}")
    connection.putheader("Authorization", "Bearer alice")
    connection.putheader("Content-Type", kind)
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    for block in body:
        connection.send(b"%x\r\n%b\r\n" % (len(block), block))
    connection.send(b"0\r\n\r\n")
    answer = connection.getresponse()
    reported = Answer(answer.status, answer.headers, answer.read())
    connection.close()
    return reported


def body_hash(octets: bytes) -> str:
    return hashlib.sha256(octets.partition(b"\r\n\r\n")[2].lstrip(b" ")).hexdigest()


def test_a_large_mime_message_is_sent_without_loading_it_into_memory(
    remotes: Remotes, serve
) -> None:
    remote = remotes.start("a.test")
    relay = serve(remotes)
    relay.until_final(relay.send_mail(to=["bob@example.test", "x@a.test"], subject="small"))
    remote.envelopes.clear()
    idle_bytes = relay.memory_bytes()
    answer = upload(relay, "POST", "/me/sendMail", coded(content()))
    assert answer.status == 202, answer.body
    assert answer.headers["x-relay-internet-message-id"] == "<large@example.test>"
    relay.until_final(answer.headers["x-relay-message-id"])
    assert body_hash(received(remote, "x@a.test").content) == EXPECTED
    assert relay.subjects("bob") == ["large", "small"]
    until("the original is filed", lambda: relay.subjects("alice", "Sent") == ["large", "small"])
    grown_bytes = relay.memory_bytes() - idle_bytes
    assert grown_bytes < GROWTH_BYTES_MAX
    assert relay.faults() == []


def open_upload(relay: RelayProcess, length: int, kind: str = "text/plain") -> socket.socket:
    """Begin a POST of MIME of which the rest is to come, or never comes."""
    host, _, port = str(relay.ready["http"][0]).rpartition(":")
    client = socket.create_connection((host, int(port)), timeout=120)
    client.sendall(
        f"POST /v1.0/me/sendMail HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer alice\r\n"
        f"Content-Type: {kind}\r\nContent-Length: {length}\r\n\r\n".encode()
    )
    return client


def arriving(relay: RelayProcess) -> list[str]:
    submissions = relay.folder / "mail/.submissions"
    return [path.name for path in submissions.glob("preparing/*")]


def test_an_interrupted_upload_leaves_no_files(serve) -> None:
    begun = b"".join(coded(content(2_000_000)))
    relay = serve()
    client = open_upload(relay, 10 * len(begun))
    client.sendall(begun)
    until("it is on its way", lambda: arriving(relay))
    client.close()
    until("it is removed", lambda: not arriving(relay))
    client = open_upload(relay, 10 * len(begun))
    client.sendall(begun)
    until("it is on its way again", lambda: arriving(relay))
    relay.restart()
    client.close()
    assert arriving(relay) == []
    nobody = b"".join(coded(content(2_000_000, HEADER.replace(b"To:", b"X:"))))
    client = open_upload(relay, 10 * len(nobody))
    client.sendall(nobody)
    reported = client.recv(1000)
    client.close()
    assert reported.startswith(b"HTTP/1.1 400 ")
    assert arriving(relay) == []
    assert relay.maildir("alice", "Drafts") == []
    assert relay.faults() == []


UPLOADED = b"".join(LINES * 10 for _ in range(300))  # 12 MB
RANGE_BYTES = 5 * 1024 * 1024


def put_range(relay: RelayProcess, url: str, start: int, end: int) -> Answer:
    headers = {"Content-Range": f"bytes {start}-{end - 1}/{len(UPLOADED)}"}
    path = "/" + url.partition("//")[2].partition("/")[2]
    return relay.request("PUT", path, UPLOADED[start:end], headers=headers)


def test_an_upload_session_continues_after_a_kill(remotes: Remotes, serve) -> None:
    remote = remotes.start("a.test")
    relay = serve(remotes)
    message = {"subject": "large", "toRecipients": people("x@a.test", "bob@example.test")}
    draft = relay.graph("POST", "/me/messages", message).json()
    item = {"attachmentType": "file", "name": "large.bin", "size": len(UPLOADED)}
    path = f"/me/messages/{draft['id']}/attachments"
    made = relay.graph("POST", f"{path}/createUploadSession", {"AttachmentItem": item})
    assert made.status == 201
    url = made.json()["uploadUrl"]
    assert put_range(relay, url, 0, RANGE_BYTES).status == 200
    relay.restart()
    idle_bytes = relay.memory_bytes()
    upload = f"/v1.0{url.partition('/v1.0')[2]}"
    reported = relay.request("GET", upload).json()["nextExpectedRanges"]
    assert reported == [f"{RANGE_BYTES}-{len(UPLOADED) - 1}"]
    for start in range(RANGE_BYTES, len(UPLOADED), RANGE_BYTES):
        answer = put_range(relay, url, start, min(start + RANGE_BYTES, len(UPLOADED)))
    assert answer.status == 201
    location = "/" + answer.headers["location"].partition("//")[2].partition("/")[2]
    value = relay.request("GET", f"{location}/$value", headers={"Authorization": "Bearer alice"})
    assert value.body == UPLOADED
    shown = relay.graph("GET", f"{path}").json()["value"]
    assert [base64.b64decode(one["contentBytes"]) for one in shown] == [UPLOADED]
    assert relay.graph("POST", f"/me/messages/{draft['id']}/send").status == 202
    relay.until_final(draft["id"])
    _, _, part = received(remote, "x@a.test").content.partition(b"large.bin")
    came, _, _ = part.partition(b"\r\n\r\n")[2].partition(b"\r\n--")
    assert base64.b64decode(came) == UPLOADED
    assert relay.memory_bytes() - idle_bytes < 30_000_000
    assert relay.faults() == []


LISTED = 4
LISTED_BYTES = 20_000_000  # of each attachment, in base64; such a message has a page of its own
NEXT_LINK = re.compile(rb'"@odata.nextLink":"http://[^/]+([^"]+)"')
LINK_BYTES_MAX = 2000


@long
def test_a_list_with_large_attachments_is_written_without_loading_them_into_memory(serve) -> None:
    header = b"From: x@a.test\r\nContent-Type: application/pdf; name=a.pdf\r\nContent-Transfer-Encoding: base64\r\n\r\n"
    line = base64.b64encode(bytes(range(57)))
    relay = serve()
    assert relay.graph("GET", "/me/messages").status == 200
    inbox = relay.folder / "mail/example.test/alice"
    for number in range(LISTED):
        path = inbox / "tmp" / f"{1_700_000_000 + number}.M{number}.host"
        path.write_bytes(header + (line + b"\r\n") * (LISTED_BYTES // 78))
        path.rename(inbox / "cur" / f"{path.name}:2,")
    idle_bytes = relay.memory_bytes()
    host, _, port = str(relay.ready["http"][0]).rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=120)
    target = "/v1.0/me/mailFolders/inbox/messages?$expand=attachments&$select=subject"
    pages = lines = 0
    while target:
        connection.request("GET", target, headers={"Authorization": "Bearer alice"})
        answer = connection.getresponse()
        assert answer.status == 200
        pages, held, end = pages + 1, b"", b""
        while block := answer.read(1 << 20):
            held, end = held + block, (end + block)[-LINK_BYTES_MAX:]
            lines += held.count(line)
            held = held[-len(line) + 1 :]
        link = NEXT_LINK.search(end)
        target = link[1].decode() if link else ""
    connection.close()
    assert (pages, lines) == (LISTED, LISTED * (LISTED_BYTES // 78))
    assert relay.memory_bytes() - idle_bytes < 30_000_000
    assert relay.faults() == []
