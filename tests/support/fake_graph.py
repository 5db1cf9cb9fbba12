"""A Microsoft Graph that misbehaves: what Relay's own front door does not do.

    async with FakeGraph(clock.queue_us) as graph:
        graph.fault = lambda method, path: "lost after" if path.endswith("/send") else ""

The id of a message changes when it is sent, and its copy is in Sent Items a minute later. A message to an
address that begins with "bad" is refused. A fault is "lost before" or "lost after" the effect, "late" (a 504,
and the draft is sent 100 s later), or an answer. Its clock is not ours. From the beginning, others have a draft
and a sent message of OTHERS_ID in each folder.
"""

import asyncio
import contextlib
import email
import json
import ssl
from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import getaddresses
from itertools import count, product
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

SEEN_US, LATE_US = 60_000_000, 100_000_000
OTHERS_ID = "<o'1@a.test>"
_YEAR_2000_US = 946_684_800_000_000
Answer = tuple[int, dict[str, Any] | bytes, dict[str, str]]


SECRET = "authtoken=eyJhbGciOiJSUzI1NiIsImtpZCI6IjQ4"


def _mime_of(message: dict[str, Any]) -> bytes:
    """What is read of a message in JSON."""
    people = {
        name: ", ".join(one["emailAddress"]["address"] for one in message.get(key, ()))
        for name, key in (("To", "toRecipients"), ("Cc", "ccRecipients"), ("Bcc", "bccRecipients"))
    }
    lines = "".join(f"{name}: {text}\r\n" for name, text in people.items() if text)
    return f"Message-ID: {message['internetMessageId']}\r\n{lines}\r\n".encode()


def error(status: int, code: str, **fields: str) -> Answer:
    """An answer that refuses a request."""
    named = {name.replace("_", "-"): value for name, value in fields.items()}
    return status, {"error": {"code": code, "message": "said Graph"}}, {"request-id": "r1", **named}


@dataclass
class Item:
    mime: bytes
    folder: str = "drafts"
    seen_us: int = 0
    sends_us: int = 0  # when it is sent although the answer was 504, whatever becomes of the draft
    created_us: int = 0
    is_draft: bool = True
    files: list[tuple[str, bytes]] = field(default_factory=list)

    @property
    def message_id(self) -> str:
        return email.message_from_bytes(self.mime)["Message-ID"] or ""

    @property
    def recipients(self) -> list[str]:
        header = email.message_from_bytes(self.mime)
        values = [str(header[name]) for name in ("To", "Cc", "Bcc") if name in header]
        return [address.lower() for _, address in getaddresses(values)]


class FakeGraph:
    """The mailbox of one user."""

    def __init__(self, now_us: Callable[[], int], tls: ssl.SSLContext | None = None) -> None:
        self.now_us, self.tls = now_us, tls
        places = product(("drafts", "sentitems", "deleteditems"), (True, False))
        mime = f"Message-ID: {OTHERS_ID}\r\nTo: eve@e.test\r\n\r\n".encode()
        self.others = {
            f"other {place}": Item(
                mime, place[0], created_us=now_us() - 1_000_000, is_draft=place[1]
            )
            for place in places
        }
        self.items: dict[str, Item] = {**self.others}
        self.sent: list[Item] = []
        self.late: dict[str, Item] = {}
        self.asked: list[tuple[str, str]] = []
        self.token, self.is_dated = "token", True
        self.uploads: dict[str, tuple[Item, str, int, bytearray]] = {}
        self.url, self.page = "", 1000  # of upload sessions; of lists of files
        self.gate = asyncio.Event()  # uploads wait for it
        self.gate.set()
        self.fault: Callable[[str, str], str | Answer] = lambda _method, _path: ""
        self._numbers = count(1)
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._session, "127.0.0.1", 0, ssl=self.tls)
        self.host, self.port = self._server.sockets[0].getsockname()
        return self

    async def __aexit__(self, *_why: object) -> None:
        self._server.close()
        self.hang_up()

    def hang_up(self) -> None:
        """Close all connections."""
        while self._writers:
            self._writers.pop().close()

    def in_folder(self, name: str) -> list[Item]:
        """What Relay has there."""
        ours = (self.items[key] for key in self.items if key not in self.others)
        return [one for one in ours if one.folder == name]

    def settle(self) -> None:
        """Send what is late and due."""
        for name, item in list(self.late.items()):
            if item.sends_us <= self.now_us():
                self._send(name, self.late.pop(name))

    async def _session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                line, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                fields = {
                    name.lower(): value for name, _, value in (x.partition(": ") for x in lines)
                }
                body = await reader.readexactly(int(fields.get("content-length", 0)))
                method, target, _ = line.split(" ")
                self.asked.append((method, target))
                fault = self.fault(method, urlsplit(target).path)
                if fault == "lost before":
                    break
                if target.startswith("/up/"):
                    assert "authorization" not in fields
                    await self.gate.wait()
                    body = fields.get("content-range", "").encode() + b"\n" + body
                elif fields["authorization"] != f"Bearer {self.token}":
                    fault = error(401, "InvalidAuthenticationToken")
                given = (
                    fault if isinstance(fault, tuple) else self._answer(method, target, body, fault)
                )
                if fault == "lost after":
                    break
                status, value, more = given
                octets = (
                    value if isinstance(value, bytes) else json.dumps(value).encode() * bool(value)
                )
                named = "".join(f"{name}: {text}\r\n" for name, text in more.items())
                head = f"HTTP/1.1 {status} x\r\n{named}content-length: {len(octets)}\r\n\r\n"
                writer.write(
                    (head if status != 204 else "HTTP/1.1 204 x\r\n\r\n").encode() + octets
                )
        writer.close()

    def _answer(self, method: str, target: str, body: bytes, fault: str) -> Answer:
        self.settle()
        url = urlsplit(target)
        if url.path.startswith("/up/"):
            return self._uploaded(method, url.path, *body.split(b"\n", 1))
        path = [unquote(part) for part in url.path.split("/")[4:]]
        if path == ["sendMail"]:
            name = self._add(body)
            return self._refusal(self.items[name]) or self._send(name, self.items[name])
        if method == "POST" and path == ["messages"]:
            name = self._add(body)
            return 201, self._shown(name), {}
        if path[0] == "mailFolders":
            ids = [name for name in self.items if self._matches(name, path[1], parse_qs(url.query))]
            return 200, {"value": [self._shown(name) for name in ids]}, {}
        if path == ["messages"]:
            return 200, {"value": []}, {}
        found = self.items.get(path[1])
        if found is None or found.seen_us > self.now_us():
            return error(404, "ErrorItemNotFound")
        if method == "GET" and path[-1] == "attachments":
            start = int(parse_qs(url.query).get("$skip", ["0"])[0])
            names = [{"id": "f", "name": name} for name, _ in found.files]
            more = f"http://{self.host}:{self.port}{url.path}?$skip={start + self.page}"
            link = {"@odata.nextLink": more} if start + self.page < len(names) else {}
            return 200, {"value": names[start : start + self.page], **link}, {}
        if method == "GET":
            return 200, self._shown(path[1]), {}
        if method == "DELETE":
            found.folder = "deleteditems"
            return 204, {}, {}
        if not found.is_draft:
            return error(404, "ErrorItemNotFound")
        if method == "PATCH":
            new_id = json.loads(body)["internetMessageId"]
            found.mime = found.mime.replace(found.message_id.encode(), new_id.encode())
            return 200, self._shown(path[1]) | {"internetMessageId": new_id}, {}
        if path[-1] == "attachments":
            given = json.loads(body)
            found.files.append((given["name"], b64decode(given["contentBytes"])))
            return 201, {"id": "f"}, {}
        if path[-1] == "createUploadSession":
            item, name = json.loads(body)["AttachmentItem"], f"/up/{next(self._numbers)}"
            self.uploads[name] = (found, item["name"], item["size"], bytearray())
            base = self.url or f"http://{self.host}:{self.port}"
            return 201, {"uploadUrl": f"{base}{name}?{SECRET}"}, {}
        if refusal := self._refusal(found):
            return refusal
        if fault == "late":
            found.sends_us = self.now_us() + LATE_US
            self.late.setdefault(path[1], found)
            return error(504, "")
        return self._send(path[1], found)

    def _uploaded(self, method: str, path: str, place: bytes, octets: bytes) -> Answer:
        item, name, size, has = self.uploads[path]
        if method == "PUT":
            start = int(place.removeprefix(b"bytes ").partition(b"-")[0])
            if start != len(has):
                return error(416, "ErrorInvalidRange")
            has += octets
            if len(has) == size:
                item.files.append((name, bytes(has)))
                return 201, {}, {}
        return 200, {"nextExpectedRanges": [f"{len(has)}"]}, {}

    def _refusal(self, item: Item) -> Answer | None:
        is_bad = any(address.startswith("bad") for address in item.recipients)
        return error(400, "ErrorInvalidRecipients") if is_bad else None

    def _add(self, body: bytes) -> str:
        name = f"id/{next(self._numbers)}="
        mime = b64decode(body, validate=True) if body[:1] != b"{" else _mime_of(json.loads(body))
        self.items[name] = Item(mime, created_us=self.now_us())
        return name

    def _send(self, name: str, item: Item) -> Answer:
        self.items.pop(name, None)
        self.sent.append(item)
        seen_us = (item.sends_us or self.now_us()) + SEEN_US
        copy = Item(item.mime, "sentitems", seen_us, 0, item.created_us, is_draft=False)
        self.items[f"sent/{name}"] = copy
        return 202, {}, {}

    def _shown(self, name: str) -> dict[str, Any]:
        item = self.items[name]
        seconds = (_YEAR_2000_US + item.created_us) / 1_000_000
        created = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        dates = {"createdDateTime": created} if self.is_dated else {}
        return {"id": name, "isDraft": item.is_draft, **dates}

    def _matches(self, name: str, folder: str, query: dict[str, list[str]]) -> bool:
        item = self.items[name]
        wanted = query["$filter"][0].removeprefix("internetMessageId eq '")[:-1].replace("''", "'")
        is_there = item.folder == folder and item.seen_us <= self.now_us()
        return is_there and item.message_id == wanted
