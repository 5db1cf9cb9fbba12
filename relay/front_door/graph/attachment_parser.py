"""From the JSON of attachment resources to Attachment.

Base64 is checked, and every ApiError names the JSON path.
"""

import binascii
import re
from collections.abc import Callable
from typing import Any

from relay.base.message.properties import Attachment
from relay.formats.draft import AttachmentFacts
from relay.front_door.graph.json_values import (
    invalid_value,
    missing_property,
    one_of,
    read_boolean,
    read_header_text,
    read_object,
    read_string,
    unsupported,
)

_NAME_CHARACTERS = 255
_TYPE_CHARACTERS = 255
_CONTENT_ID_CHARACTERS = 255
_TOKEN = r"[A-Za-z0-9!#$%&'*+.^_`{|}~-]+"  # noqa: S105 - the grammar's token, not a secret
_TYPE = re.compile(rf"{_TOKEN}/{_TOKEN}(\s*;[\x20-\x7e]*)?")
_CONTENT_ID = re.compile(r"[^<>]+")
_WHITE_SPACE = b" \t\r\n"
_BASE64_BLOCK_BYTES = 1 << 20  # a multiple of four
_UPLOAD_TYPES = ("file", "item", "reference")
_ITEM = "microsoft.graph.itemattachment"
_REFERENCE = "microsoft.graph.referenceattachment"
_ATTACHMENT_KINDS = {
    "microsoft.graph.fileattachment": "microsoft.graph.fileAttachment",
    _ITEM: "microsoft.graph.itemAttachment",
    _REFERENCE: "microsoft.graph.referenceAttachment",
}


def read_upload(value: object, path: str) -> AttachmentFacts:
    """Read the attachmentItem of createUploadSession. Raises ApiError."""
    resource = read_object(value, path)
    kind = resource.get("attachmentType")
    if kind is not None and one_of(kind, f"{path}.attachmentType", _UPLOAD_TYPES) != "file":
        raise unsupported(f"{path}.attachmentType", "only files can be uploaded")
    name = read_header_text(resource.get("name"), f"{path}.name", longest=_NAME_CHARACTERS)
    if not name:
        raise missing_property(f"{path}.name")
    return AttachmentFacts(
        name=name,
        content_type=_content_type(resource, path),
        size=_size(resource.get("size"), f"{path}.size"),
        inline=read_boolean(resource.get("isInline") or False, f"{path}.isInline"),
        content_id=_content_id(resource, path),
    )


def _size(value: object, path: str) -> int:
    if value is None:
        raise missing_property(path)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise invalid_value(path, value, "a number of bytes, at least 1", kind="Int64")
    return value


def read_attachment(
    value: object, path: str, *, read_item: Callable[[object, str], bytes]
) -> Attachment:
    """Read an attachment; `read_item` returns the MIME of an itemAttachment's message.

    Raises ApiError.
    """
    resource = read_object(value, path)
    kind = read_string(resource.get("@odata.type"), f"{path}.@odata.type").lower().removeprefix("#")
    if kind not in ("", *_ATTACHMENT_KINDS):
        expected = ", ".join(f"#{type_name}" for type_name in _ATTACHMENT_KINDS.values())
        raise invalid_value(f"{path}.@odata.type", resource["@odata.type"], f"one of {expected}")
    if kind == _REFERENCE:
        raise unsupported(f"{path}.@odata.type", "links are not attached; the body may have them")
    name = read_header_text(resource.get("name"), f"{path}.name", longest=_NAME_CHARACTERS)
    if not name:
        raise missing_property(f"{path}.name")
    inline = read_boolean(resource.get("isInline") or False, f"{path}.isInline")
    if kind == _ITEM:
        if resource.get("item") is None:
            raise missing_property(f"{path}.item")
        message = read_item(resource["item"], f"{path}.item")
        content = binascii.b2a_base64(message, newline=False)
        return Attachment(name, "message/rfc822", content, len(message), inline=inline, item=True)
    content = _content(resource, path)
    return Attachment(
        name=name,
        content_type=_content_type(resource, path),
        content=content,
        size=len(content) // 4 * 3 - content[-2:].count(b"="),
        inline=inline,
        content_id=_content_id(resource, path),
    )


def _content(resource: dict[str, Any], path: str) -> bytes:
    """Return contentBytes in base64. Kiota's TypeScript SDK omits it if it is given a Buffer."""
    path = f"{path}.contentBytes"
    if resource.get("contentBytes") is None:
        raise missing_property(path)
    text = read_string(resource["contentBytes"], path)
    try:
        content = text.encode("ascii")
        if any(sign in content for sign in (b" ", b"\t", b"\r", b"\n")):
            content = content.translate(None, _WHITE_SPACE)
        _check_base64(content)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise invalid_value(path, text, f"base64 ({_reason(error)})", kind="Binary") from None
    return content


def _check_base64(content: bytes) -> None:
    """Raise binascii.Error unless the content is base64; decode only a block at a time."""
    if 0 <= content.find(b"=") < len(content) - 2:
        raise binascii.Error("Excess data after padding")
    for start in range(0, len(content), _BASE64_BLOCK_BYTES):
        block = memoryview(content)[start : start + _BASE64_BLOCK_BYTES]
        binascii.a2b_base64(block, strict_mode=True)


def _reason(error: Exception) -> str:
    return "it has other characters" if isinstance(error, UnicodeEncodeError) else str(error)


def _content_type(resource: dict[str, Any], path: str) -> str:
    path = f"{path}.contentType"
    text = read_header_text(resource.get("contentType"), path, longest=_TYPE_CHARACTERS).strip()
    if not text:
        return "application/octet-stream"
    if not _TYPE.fullmatch(text) or text.lower().startswith("multipart/"):
        raise invalid_value(path, text, "a media type of one part, such as application/pdf")
    return text


def _content_id(resource: dict[str, Any], path: str) -> str:
    path = f"{path}.contentId"
    text = read_header_text(resource.get("contentId"), path, longest=_CONTENT_ID_CHARACTERS)
    if text.startswith("<") and text.endswith(">"):
        text = text[1:-1]
    if text and not (_CONTENT_ID.fullmatch(text) and text.isascii()):
        raise invalid_value(path, text, "an id of visible ASCII characters without < and >")
    return text
