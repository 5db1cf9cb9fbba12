"""Attachments in a message's JSON: fileAttachment with its base64 content.

On the path: the message parser calls it for each item of `attachments`.
Holds: content is valid base64 without white space; names and types are fit for a header.
Fails: ApiError 400 that names the path; 501 for item and reference attachments.
Standards: Graph's fileAttachment; RFC 4648 4; RFC 2045 5.1 (the form of a type).
"""

import binascii
import re
from typing import Any

from relay.graph.values import (
    a_boolean,
    a_text,
    an_array,
    an_object,
    header_text,
    is_annotation,
    missing,
    unknown_property,
    unsupported,
    wrong,
)
from relay.message.properties import Attachment

ATTACHMENTS_MAX = 250
_NAME_CHARACTERS = 255
_TYPE_CHARACTERS = 255
_CONTENT_ID_CHARACTERS = 255

_TOKEN = r"[A-Za-z0-9!#$%&'*+.^_`{|}~-]+"  # noqa: S105 - the grammar's token, not a secret
_TYPE = re.compile(rf"{_TOKEN}/{_TOKEN}(\s*;[\x20-\x7e]*)?")
_CONTENT_ID = re.compile(r"[^\s<>]+")
_WHITE_SPACE = b" \t\r\n"
_READ_ONLY = frozenset({"id", "size", "lastModifiedDateTime", "contentLocation"})
_KNOWN = frozenset({"name", "contentType", "contentBytes", "isInline", "contentId"})
_FILE = "microsoft.graph.fileattachment"


def read_attachments(value: object, path: str) -> tuple[Attachment, ...]:
    """Read the array at `path`. Raises ApiError."""
    items = an_array(value, path, most=ATTACHMENTS_MAX)
    return tuple(_attachment(item, f"{path}[{index}]") for index, item in enumerate(items))


def decode_base64(text: bytes) -> bytes:
    """Decode base64 that may be broken into lines.

    Raises binascii.Error for anything that is not exactly base64.
    """
    return binascii.a2b_base64(text.translate(None, _WHITE_SPACE), strict_mode=True)


def _attachment(value: object, path: str) -> Attachment:
    given = an_object(value, path)
    kind = a_text(given.get("@odata.type"), f"{path}.@odata.type")
    if kind and kind.lower().removeprefix("#") != _FILE:
        raise unsupported(
            f"{path}.@odata.type", "only #microsoft.graph.fileAttachment is supported"
        )
    for name in given:
        if name not in _KNOWN and name not in _READ_ONLY and not is_annotation(name):
            raise unknown_property(f"{path}.{name}", "microsoft.graph.fileAttachment")
    name = header_text(given.get("name"), f"{path}.name", longest=_NAME_CHARACTERS)
    if not name:
        raise missing(f"{path}.name")
    content = _content(given, path)
    return Attachment(
        name=name,
        content_type=_content_type(given, path),
        content=content,
        size=len(content) // 4 * 3 - content[-2:].count(b"="),
        inline=a_boolean(given.get("isInline") or False, f"{path}.isInline"),
        content_id=_content_id(given, path),
    )


def _content(given: dict[str, Any], path: str) -> bytes:
    """Return the base64 text; what Kiota's TypeScript SDK makes of a Buffer has none at all."""
    path = f"{path}.contentBytes"
    if given.get("contentBytes") is None:
        raise missing(path)
    text = a_text(given["contentBytes"], path)
    try:
        content = text.encode("ascii").translate(None, _WHITE_SPACE)
        binascii.a2b_base64(content, strict_mode=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise wrong(path, text, f"base64 ({_reason(error)})") from None
    return content


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
