"""Attachments in a message's JSON: files with their base64, and messages.

On the path: the message parser calls it for each item of `attachments`, the handlers for one that
is added, and for what createUploadSession says of a file.
Holds: content is valid base64 without white space; names and types are fit for a header.
Fails: ApiError 400 that names the path; 501 for reference attachments, events and contacts.
Standards: Graph's fileAttachment and itemAttachment; RFC 4648 4; RFC 2045 5.1 (the form of a type).
"""

import binascii
import re
from collections.abc import Callable
from typing import Any

from relay.graph.values import (
    a_boolean,
    a_text,
    an_array,
    an_object,
    header_text,
    missing,
    one_of,
    only_known,
    unsupported,
    wrong,
)
from relay.mailbox.attachments import ATTACHMENTS_MAX
from relay.message.properties import Attachment
from relay.mime.mimeread import AttachmentFacts

_NAME_CHARACTERS = 255
_TYPE_CHARACTERS = 255
_CONTENT_ID_CHARACTERS = 255

_TOKEN = r"[A-Za-z0-9!#$%&'*+.^_`{|}~-]+"  # noqa: S105 - the grammar's token, not a secret
_TYPE = re.compile(rf"{_TOKEN}/{_TOKEN}(\s*;[\x20-\x7e]*)?")
_CONTENT_ID = re.compile(r"[^\s<>]+")
_WHITE_SPACE = b" \t\r\n"
_CHECKED_AT_ONCE = 1 << 20  # a whole number of groups of four
_OF_ANY = ("name", "contentType", "isInline", "id", "size", "lastModifiedDateTime")
_OF_FILE = ("contentBytes", "contentId", "contentLocation")
_OF_ITEM = ("item",)
_OF_UPLOAD = ("attachmentType", "name", "size", "contentType", "isInline", "contentId")
_UPLOAD_TYPES = ("file", "item", "reference")
_NUMBER = re.compile(r"\d{1,18}", re.ASCII)
_FILE = "microsoft.graph.fileattachment"
_ITEM = "microsoft.graph.itemattachment"


def read_attachments(
    value: object, path: str, *, read_item: Callable[[object, str], bytes]
) -> tuple[Attachment, ...]:
    """Read the array at `path`; `read_item` makes a message of an itemAttachment's item.

    Raises ApiError.
    """
    items = an_array(value, path, most=ATTACHMENTS_MAX)
    return tuple(
        _attachment(item, f"{path}[{index}]", read_item) for index, item in enumerate(items)
    )


def read_attachment(value: object, *, read_item: Callable[[object, str], bytes]) -> Attachment:
    """Read an attachment that is a request's body. Raises ApiError."""
    return _attachment(value, "attachment", read_item)


def read_upload(value: object, path: str) -> AttachmentFacts:
    """Read what createUploadSession says of a file that is to come. Raises ApiError."""
    given = an_object(value, path)
    only_known(given, _OF_UPLOAD, path=path, resource="microsoft.graph.attachmentItem")
    kind = given.get("attachmentType")
    if kind is not None and one_of(kind, f"{path}.attachmentType", _UPLOAD_TYPES) != "file":
        raise unsupported(f"{path}.attachmentType", "only files can be uploaded")
    name = header_text(given.get("name"), f"{path}.name", longest=_NAME_CHARACTERS)
    if not name:
        raise missing(f"{path}.name")
    return AttachmentFacts(
        name=name,
        content_type=_content_type(given, path),
        size=_size(given.get("size"), f"{path}.size"),
        inline=a_boolean(given.get("isInline") or False, f"{path}.isInline"),
        content_id=_content_id(given, path),
    )


def _size(value: object, path: str) -> int:
    """Read an Int64, which OData writes as a string as well."""
    if value is None:
        raise missing(path)
    number = int(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise wrong(path, value, "a number of bytes, at least 1")
    return number


def _attachment(value: object, path: str, read_item: Callable[[object, str], bytes]) -> Attachment:
    given = an_object(value, path)
    kind = a_text(given.get("@odata.type"), f"{path}.@odata.type").lower().removeprefix("#")
    if kind not in ("", _FILE, _ITEM):
        raise unsupported(
            f"{path}.@odata.type",
            "only #microsoft.graph.fileAttachment and #microsoft.graph.itemAttachment can be sent; "
            "put a link into the body",
        )
    is_item = kind == _ITEM
    resource = "microsoft.graph.itemAttachment" if is_item else "microsoft.graph.fileAttachment"
    only_known(
        given, (*_OF_ANY, *(_OF_ITEM if is_item else _OF_FILE)), path=path, resource=resource
    )
    name = header_text(given.get("name"), f"{path}.name", longest=_NAME_CHARACTERS)
    if not name:
        raise missing(f"{path}.name")
    inline = a_boolean(given.get("isInline") or False, f"{path}.isInline")
    if is_item:
        if given.get("item") is None:
            raise missing(f"{path}.item")
        message = read_item(given["item"], f"{path}.item")
        content = binascii.b2a_base64(message, newline=False)
        return Attachment(name, "message/rfc822", content, len(message), inline=inline, item=True)
    content = _content(given, path)
    return Attachment(
        name=name,
        content_type=_content_type(given, path),
        content=content,
        size=len(content) // 4 * 3 - content[-2:].count(b"="),
        inline=inline,
        content_id=_content_id(given, path),
    )


def _content(given: dict[str, Any], path: str) -> bytes:
    """Return the base64 text; what Kiota's TypeScript SDK makes of a Buffer has none at all."""
    path = f"{path}.contentBytes"
    if given.get("contentBytes") is None:
        raise missing(path)
    text = a_text(given["contentBytes"], path)
    try:
        content = text.encode("ascii")
        if any(map(content.__contains__, (b" ", b"\t", b"\r", b"\n"))):
            content = content.translate(None, _WHITE_SPACE)
        _check_base64(content)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise wrong(path, text, f"base64 ({_reason(error)})") from None
    return content


def _check_base64(content: bytes) -> None:
    """Raise binascii.Error unless it is base64, which is decoded piece by piece only."""
    if 0 <= content.find(b"=") < len(content) - 2:
        raise binascii.Error("Excess data after padding")
    for start in range(0, len(content), _CHECKED_AT_ONCE):
        block = memoryview(content)[start : start + _CHECKED_AT_ONCE]
        binascii.a2b_base64(block, strict_mode=True)


def _reason(error: Exception) -> str:
    return "it has other characters" if isinstance(error, UnicodeEncodeError) else str(error)


def _content_type(given: dict[str, Any], path: str) -> str:
    path = f"{path}.contentType"
    text = header_text(given.get("contentType"), path, longest=_TYPE_CHARACTERS).strip()
    if not text:
        return "application/octet-stream"
    if not _TYPE.fullmatch(text) or text.lower().startswith("multipart/"):
        raise wrong(path, text, "a media type of one part, such as application/pdf")
    return text


def _content_id(given: dict[str, Any], path: str) -> str:
    path = f"{path}.contentId"
    text = header_text(given.get("contentId"), path, longest=_CONTENT_ID_CHARACTERS)
    if text.startswith("<") and text.endswith(">"):
        text = text[1:-1]
    if text and not (_CONTENT_ID.fullmatch(text) and text.isascii()):
        raise wrong(path, text, "an id of visible ASCII characters without < and >")
    return text
