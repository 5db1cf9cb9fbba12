"""Put the files of a converted message into a draft, one after the other.

A file of less than 3 MB is one POST, a larger one an upload session. Each file must be known to be
there exactly once, and before /send the list of the draft is compared: else it ends with a
FillingError, and the caller deletes the draft and makes another one. After an answer 429 or 503 it
goes on with the file that has no 201 yet, in the same draft; after WAITS_S in all for a message it
is deferred. Graph v1.0: attachment, createUploadSession; Attach large files to Outlook messages.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import quote

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from relay.base.message.outcome import Failed
from relay.base.message.web_url import UrlError, read_url
from relay.delivery.graph.outcomes import is_missing, outcome_of, pause_s, reply_of
from relay.delivery.graph.upload import GraphRequests, UploadRequests, secrets_in, upload_url
from relay.delivery.http_connection import HttpError, HttpResponse
from relay.formats.graph_draft import DraftFile
from relay.store.spool.types import CloudRequest

JSON = "application/json"
# limit: waits for Microsoft Graph in a message with files
WAITS_S = 60.0
_WAIT_S = 5.0  # where the answer has no Retry-After
_POSTED_OCTETS = 3_000_000  # an upload session refuses less
_BLOCK_OCTETS = 12 * 320 * 1024  # a multiple of 320 KiB, below 4 MB
_PUTS_MAX = 3  # of a block whose answers are lost


class FillingError(Exception):
    """The draft is not what it should be, or is refused by `answer`; the text says why."""

    def __init__(self, text: str, answer: HttpResponse | None = None) -> None:
        super().__init__(text)
        self.answer = answer


class _Answer(Struct, rename="camel"):
    internet_message_id: str | None = None
    upload_url: str = ""
    next_expected_ranges: list[str] = []  # of Outlook ["N"], else ["N-"]
    value: list[dict[str, Any]] = []
    next_link: str = msgspec.field(default="", name="@odata.nextLink")


@dataclass(eq=False)
class DraftFilling:
    """The filling of drafts for one message."""

    session: GraphRequests
    mailbox: str
    files: Sequence[DraftFile]
    _waited_s: float = 0.0
    _secrets: list[str] = field(default_factory=list[str])

    async def fill(self, made: CloudRequest, message_id: str) -> CloudRequest:
        """Give an empty draft this Message-ID (unless it is ""), and all files; return it as it is
        then. Raises FillingError, ConnectError, HttpError, and OSError for a file that cannot be
        read.
        """
        draft = path_of(made.draft)
        if message_id:
            made = await self._renamed(made, message_id)
        path = f"{draft}/attachments"
        for file in self.files:
            value: dict[str, Any] = {"name": file.name, "contentType": file.content_type}
            if file.content_id:
                value |= {"isInline": True, "contentId": file.content_id}
            if file.size < _POSTED_OCTETS:
                await self._ask("POST", path, await asyncio.to_thread(_posted, file, value))
            else:
                value |= {"attachmentType": "file", "size": file.size}
                body = msgspec.json.encode({"AttachmentItem": value})
                begun = await self._ask("POST", f"{path}/createUploadSession", body)
                await self._upload(file, begun.upload_url)
        await self._compare(f"{path}?$select=id,name")
        return made

    async def _renamed(self, made: CloudRequest, message_id: str) -> CloudRequest:
        try:
            body = msgspec.json.encode({"internetMessageId": message_id})
            said = await self._ask("PATCH", path_of(made.draft), body)
        except FillingError as error:
            if error.answer is None:
                raise
            return made  # with the Message-ID that Relay made
        return replace(made, message_id=said.internet_message_id or message_id)

    async def _upload(self, file: DraftFile, text: str) -> None:
        try:
            url = upload_url(text, self.session.target)
        except UrlError as error:
            raise self.session.no_tls(f"the upload URL of {self.session.target}: {error}") from None
        self._secrets += secrets_in(url)
        self.session.hide(*self._secrets)
        blocks, start = file.blocks(_BLOCK_OCTETS), 0
        with closing(UploadRequests(self.session, url)) as upload:
            while block := await asyncio.to_thread(next, blocks, b""):
                await self._put(upload, block, start, size=file.size)
                start += len(block)
        self.session.close()  # idle meanwhile: a gateway may have forgotten the connection

    async def _put(self, upload: UploadRequests, block: bytes, start: int, *, size: int) -> None:
        """Put a block. What the host says that it has counts only if it is what was sent."""
        end = start + len(block)
        put = partial(upload.request, "PUT", f"bytes {start}-{end - 1}/{size}", block)
        for _ in range(_PUTS_MAX):
            is_lost = False
            try:
                answer = await self._after_waits(put)
            except HttpError as error:
                if is_lost := end < size:
                    answer = await self._after_waits(partial(upload.request, "GET"))
                else:
                    raise FillingError(str(error)) from None
            if end == size and answer.status in (200, 201):
                return
            ranges = self._read(answer, 200, 202, of_upload=True).next_expected_ranges
            at = "".join(ranges).partition("-")[0]
            if at == str(end):
                return
            if not is_lost or at != str(start):
                raise FillingError(f"{reply_of(answer)}, which expects {at or 'nothing'}")
        raise FillingError(f"{_PUTS_MAX} answers to a block of a file were lost")

    async def _compare(self, path: str) -> None:
        """Compare the files that the draft has with those that it should have."""
        names: list[str] = []
        with suppress(UrlError):  # there is no further page
            for _ in (*self.files, "one more"):  # a page has one file at least
                page = await self._ask("GET", path)
                names += [str(attachment.get("name")) for attachment in page.value]
                path = read_url(page.next_link, schemes=("https", "http")).target
        planned = [file.name for file in self.files]
        if sorted(names) != sorted(planned):
            has = f"the draft has {len(names)} of {len(planned)} files"
            others = [f', such as "{name}"' for name in names if name not in planned]
            raise FillingError("".join([has, *others[:1]]))

    async def _ask(self, method: str, path: str, body: bytes = b"") -> _Answer:
        """Return what a request in the mailbox is answered with."""
        ask = partial(self.session.request, method, self.mailbox, path, body=body, kind=JSON)
        answer = await self._after_waits(ask)
        return self._read(answer, 201 if method == "POST" else 200)

    async def _after_waits(self, ask: Callable[[], Awaitable[HttpResponse]]) -> HttpResponse:
        """Ask, again after each answer that asks to wait, as long as the message has."""
        while (answer := await ask()).status in (429, 503):
            wait_s = pause_s(answer) or _WAIT_S
            if self._waited_s + wait_s > WAITS_S:
                raise self.session.trouble(answer)
            self._waited_s += wait_s
            await asyncio.sleep(wait_s)  # real time: a peer
        return answer

    def _read(self, answer: HttpResponse, *expected: int, of_upload: bool = False) -> _Answer:
        """Return an expected answer. The error has another one if it says that there is no use in a
        further draft.
        """
        if answer.status in expected:
            return self.session.read(answer, _Answer)
        is_final = isinstance(outcome_of(answer, self.session.peer), Failed)
        is_refused = answer.status // 100 == 4 and not (of_upload or is_missing(answer))
        is_told = answer.status // 100 == 4 and (is_final or is_refused)
        raise FillingError(reply_of(answer), answer if is_told else None)


def _posted(file: DraftFile, value: dict[str, Any]) -> bytes:
    """Return the JSON of a small file. Blocks. Raises OSError."""
    octets = b"".join(file.blocks(_POSTED_OCTETS))
    kind = {"@odata.type": "#microsoft.graph.fileAttachment"}
    return msgspec.json.encode(kind | value | {"contentBytes": octets})


def path_of(draft: str) -> str:
    """Return the path of a message in a mailbox."""
    return f"messages/{quote(draft, safe='')}"
