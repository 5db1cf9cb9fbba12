"""A referenceAttachment: a link to a file elsewhere, in JSON and in MIME.

In MIME it is a list of URIs (RFC 2483 5) with one URI. The other properties are comments of the
list. The first comment marks it, so that other lists of URIs stay files. A mail program without
support for links shows a text file, which is readable.
"""

import re
from binascii import b2a_base64
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from relay.base.message.properties import Attachment
from relay.front_door.graph.json_values import (
    invalid_value,
    missing_property,
    one_of,
    read_boolean,
    read_string,
)

REFERENCE_TYPE = "text/uri-list"
REFERENCE_BYTES_MAX = 32 * 1024  # a longer list is a file
_PROVIDERS = ("other", "oneDriveBusiness", "oneDriveConsumer", "dropbox")
_PERMISSIONS = (
    *("other", "view", "edit", "anonymousView", "anonymousEdit"),
    *("organizationView", "organizationEdit"),
)
_MARK = "# referenceAttachment"
_COMMENT = re.compile(r"# (\w+): (\S+)")
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,31}:[!-~]{1,4000}")


class Reference(Struct, frozen=True):
    """A link; "" is absent. `provider` is one of _PROVIDERS, `permission` one of _PERMISSIONS."""

    url: str
    provider: str = "other"
    permission: str = "other"
    is_folder: bool = False
    preview_url: str = ""
    thumbnail_url: str = ""


def read_reference_attachment(resource: Mapping[str, Any], name: str, path: str) -> Attachment:
    """Return the attachment that holds a link. Raises ApiError 400."""
    if resource.get("sourceUrl") is None:
        raise missing_property(f"{path}.sourceUrl")
    content = _write_reference(
        Reference(
            url=_uri(resource, "sourceUrl", path),
            provider=_choice(resource, "providerType", path, choices=_PROVIDERS),
            permission=_choice(resource, "permission", path, choices=_PERMISSIONS),
            is_folder=read_boolean(resource.get("isFolder") or False, f"{path}.isFolder"),
            preview_url=_uri(resource, "previewUrl", path),
            thumbnail_url=_uri(resource, "thumbnailUrl", path),
        )
    )
    return Attachment(name, REFERENCE_TYPE, b2a_base64(content, newline=False), len(content))


def reference_json(reference: Reference) -> dict[str, Any]:
    """Return the properties that only a referenceAttachment has."""
    return {
        "sourceUrl": reference.url,
        "providerType": reference.provider,
        "permission": reference.permission,
        "isFolder": reference.is_folder,
        "previewUrl": reference.preview_url or None,
        "thumbnailUrl": reference.thumbnail_url or None,
    }


def _uri(resource: Mapping[str, Any], name: str, path: str) -> str:
    text = read_string(resource.get(name), f"{path}.{name}")
    if resource.get(name) is not None and not _is_uri(text):
        expected = "a URL such as https://example.com/file, in ASCII and without spaces"
        raise invalid_value(f"{path}.{name}", text, expected)
    return text


def _choice(resource: Mapping[str, Any], name: str, path: str, *, choices: tuple[str, ...]) -> str:
    if resource.get(name) is None:
        return "other"
    return one_of(resource[name], f"{path}.{name}", choices)


# -- in MIME


def _is_uri(text: str) -> bool:
    """Return whether a text is a URI: a scheme, and visible ASCII characters."""
    return _URI.fullmatch(text) is not None


def _write_reference(reference: Reference) -> bytes:
    """Return the list of URIs."""
    comments = {
        "providerType": reference.provider,
        "permission": reference.permission,
        "isFolder": "true" if reference.is_folder else "",
        "previewUrl": reference.preview_url,
        "thumbnailUrl": reference.thumbnail_url,
    }
    lines = [_MARK, *(f"# {name}: {value}" for name, value in comments.items() if value)]
    return "".join(f"{line}\r\n" for line in (*lines, reference.url)).encode("ascii")


def read_reference(content: bytes) -> Reference | None:
    """Return the link in a list of URIs that _write_reference() made, else None."""
    lines = content.decode("ascii", "replace").splitlines()
    if len(content) > REFERENCE_BYTES_MAX or lines[:1] != [_MARK]:
        return None
    comments = {match[1]: match[2] for line in lines if (match := _COMMENT.fullmatch(line))}
    urls = [line for line in lines if line and not line.startswith("#")]
    if len(urls) != 1 or not _is_uri(urls[0]):
        return None
    provider, permission = comments.get("providerType", ""), comments.get("permission", "")
    return Reference(
        url=urls[0],
        provider=provider if provider in _PROVIDERS else "other",
        permission=permission if permission in _PERMISSIONS else "other",
        is_folder=comments.get("isFolder") == "true",
        preview_url=comments.get("previewUrl", ""),
        thumbnail_url=comments.get("thumbnailUrl", ""),
    )
