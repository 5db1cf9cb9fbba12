"""relay send as a client: what it sends, and how it handles rejections."""

import asyncio
import email
import email.policy
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from relay.base.running_relay import (
    AwayError,
    DraftToSend,
    NotAllowedError,
    RejectedError,
    TryLaterError,
    send_by_graph,
    send_by_smtp,
)
from relay.base.socket_address import Address
from tests.support.in_thread import Quiet, in_thread
from tests.support.tables import each_row

ALICE, BOB = "alice@example.test", "bob@example.test"
HELLO = DraftToSend(ALICE, (BOB,), "Grüße", "Hallo\n", (("ünï.txt", b"attached"),))


async def smtp_server(replies, seen):
    """Answer each command by its verb, 250 if `replies` does not say; keep what came."""

    async def session(reader, writer):
        writer.write(replies.get("greeting", b"220 x\r\n"))
        in_data = False
        while line := await reader.readline():
            seen.append(line)
            if in_data:
                in_data = line != b".\r\n"
                answer = b"" if in_data else replies.get(".", b"250 2.0.0 Ok: queued as q1\r\n")
            else:
                verb = line[:4].upper().decode()
                in_data = verb == "DATA" and verb not in replies
                answer = replies.get(verb, b"354 go\r\n" if in_data else b"250 2.0.0 Ok\r\n")
            if answer is None:  # hang up
                break
            writer.write(answer)
        writer.close()

    server = await asyncio.start_server(session, "127.0.0.1", 0)
    return server, Address("127.0.0.1", server.sockets[0].getsockname()[1])


async def send(draft, **replies):
    seen = []
    extensions = b"250-x\r\n250-SIZE\r\n250-8BITMIME\r\n250 SMTPUTF8\r\n"
    server, address = await smtp_server({"EHLO": extensions, **replies}, seen)
    async with server:
        return await asyncio.to_thread(send_by_smtp, address, draft), b"".join(seen)


async def test_a_message_goes_out_with_its_attachment():
    identity, wire = await send(HELLO)
    assert identity == "q1"
    content = wire.partition(b"data\r\n")[2].partition(b"\r\n.\r\n")[0]
    message = email.message_from_bytes(content, policy=email.policy.default)
    assert (message["Subject"], message["From"], message["To"]) == ("Grüße", ALICE, BOB)
    (attachment,) = message.iter_attachments()
    assert (attachment.get_filename(), attachment.get_content()) == ("ünï.txt", "attached")
    assert b"SMTPUTF8" not in wire.upper()
    assert content.partition(b"\r\n\r\n")[0].isascii()


@pytest.mark.parametrize("goodbye", [b"500 what?\r\n", b"\r\n", None])
async def test_the_reply_to_quit_is_ignored(goodbye):
    identity, _ = await send(HELLO, QUIT=goodbye)
    assert identity == "q1"


@each_row(
    "replies, kind, expected_text",
    [
        ({"RCPT": b"550 5.1.1 no such user\r\n"}, RejectedError, "550 5.1.1 no such user"),
        ({"RCPT": b"451 4.3.0 not now\r\n"}, AwayError, "451 4.3.0 not now"),
        ({"MAIL": b"501 5.1.7 bad\r\n"}, RejectedError, "501 5.1.7 bad"),
        ({"DATA": b"554 5.7.1 no\r\n"}, RejectedError, "554 5.7.1 no"),
        ({".": b"552 5.3.4 too big\r\n"}, RejectedError, "552 5.3.4 too big"),
        ({"greeting": b"421 4.3.2 full\r\n"}, AwayError, "421 4.3.2 full"),
        ({"RCPT": None}, AwayError, "closed"),
        ({".": None}, TryLaterError, "closed"),
        ({"greeting": b"nonsense\r\n"}, TryLaterError, "-1"),
    ],
)
async def test_a_rejection_carries_the_servers_reply(replies, kind, expected_text):
    with pytest.raises(RejectedError, match=expected_text) as rejected:
        await send(HELLO, **replies)
    assert type(rejected.value) is kind


@each_row(
    "draft, expected_text",
    [
        (DraftToSend(ALICE, (BOB,), "a\nBcc: c@d.test", "x"), "subject: a line break"),
        (DraftToSend(ALICE, (BOB,), "a\0", "x"), "subject: a line break"),
        (DraftToSend(ALICE, (BOB,), "\udcff", "x"), "subject: expected text in UTF-8"),
        (DraftToSend(ALICE, (BOB,), "x", "\udcff"), "body: expected text in UTF-8"),
        (DraftToSend(ALICE, ("bob@example.test\r\nRCPT TO:<x@y>",), "x", "y"), "is not an address"),
        (DraftToSend(ALICE, ("",), "x", "y"), "is not an address"),
        (
            DraftToSend(ALICE, (BOB,), "x", "y", (("\udcff", b""),)),
            r"attachment '\\udcff': expected",
        ),
        (DraftToSend(ALICE, (BOB,), "x", "y", (("a\nb", b""),)), r"attachment 'a\\nb': expected"),
        (DraftToSend("a b", (BOB,), "x", "y"), "'a b' is not an address"),
    ],
)
def test_invalid_input_is_rejected_before_connecting(draft, expected_text):
    nobody = Address("127.0.0.1", 1)
    with pytest.raises(RejectedError, match=expected_text):
        send_by_smtp(nobody, draft)
    with pytest.raises(RejectedError, match=expected_text):
        send_by_graph(nobody, draft, token="alice")


@each_row("token", ["a\nb", "a b", "ü", "\udcff"])
def test_an_invalid_token_is_rejected(token):
    with pytest.raises(RejectedError, match="token"):
        send_by_graph(Address("127.0.0.1", 1), HELLO, token=token)


@pytest.fixture
def front_door():
    """Answers every POST with `answer`: status, headers, body."""

    class Handler(Quiet, BaseHTTPRequestHandler):
        answer = (202, {"x-relay-message-id": "g1"}, b"")

        def do_POST(self):
            status, headers, body = self.answer
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(status)
            for name, value in {**headers, "content-length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    with in_thread(HTTPServer(("127.0.0.1", 0), Handler)) as server:
        yield Address("127.0.0.1", server.server_port), Handler


def test_graph_answers_with_the_id(front_door):
    address, _ = front_door
    assert send_by_graph(address, HELLO, token="alice") == "g1"


@each_row(
    "status, kind",
    [
        (400, RejectedError),
        (401, NotAllowedError),
        (403, NotAllowedError),
        (413, RejectedError),
        (429, TryLaterError),
        (500, TryLaterError),
        (503, TryLaterError),
    ],
)
def test_graph_errors_have_their_kind_and_text(front_door, status, kind):
    address, handler = front_door
    answer = b'{"error": {"code": "X", "message": "No.", "innerError": {"detail": "Why."}}}'
    handler.answer = (status, {}, answer)
    with pytest.raises(RejectedError, match=rf"{status}: No\. Why\.$") as rejected:
        send_by_graph(address, HELLO, token="alice")
    assert type(rejected.value) is kind


async def test_non_ascii_addresses_use_smtputf8():
    _, wire = await send(DraftToSend("jürgen@example.test", ("ü@bücher.example",), "x", "y"))
    commands = wire.decode().lower()  # Python 3.13 writes some in capitals
    assert "mail from:<jürgen@example.test> " in commands
    assert " smtputf8" in commands
    assert "rcpt to:<ü@xn--bcher-kva.example>" in commands
    assert "To: ü@xn--bcher-kva.example".encode() in wire


async def test_one_rejected_recipient_stops_the_message():
    seen = []
    server, address = await smtp_server({"RCPT": b"550 5.1.1 no\r\n"}, seen)
    async with server:
        with pytest.raises(RejectedError):
            await asyncio.to_thread(
                send_by_smtp, address, DraftToSend(ALICE, (BOB, ALICE), "x", "y")
            )
    assert not any(line.startswith(b"data") for line in map(bytes.lower, seen))
