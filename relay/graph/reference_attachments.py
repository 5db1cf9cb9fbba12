"""The referenceAttachment resource: from JSON to an attachment, and from a stored one to JSON."""

from binascii import b2a_base64
from collections.abc import Mapping
from typing import Any

from relay.graph.json_values import (
    invalid_value,
    missing_property,
    one_of,
    read_boolean,
    read_string,
)
from relay.graph.reference import (
    CONTENT_TYPE,
    PERMISSIONS,
    PROVIDERS,
    Reference,
    is_uri,
    write_reference,
)
from relay.message.properties import Attachment

REFERENCE_PROPERTIES = (
    *("sourceUrl", "providerType", "permission", "isFolder", "previewUrl", "thumbnailUrl"),
)


def read_reference_attachment(given: Mapping[str, Any], name: str, path: str) -> Attachment:
    """Return the attachment that holds a link. Raises ApiError 400."""
    if given.get("sourceUrl") is None:
        raise missing_property(f"{path}.sourceUrl")
    content = write_reference(
        Reference(
            url=_uri(given, "sourceUrl", path),
            provider=_choice(given, "providerType", path, choices=PROVIDERS),
            permission=_choice(given, "permission", path, choices=PERMISSIONS),
            is_folder=read_boolean(given.get("isFolder") or False, f"{path}.isFolder"),
            preview_url=_uri(given, "previewUrl", path),
            thumbnail_url=_uri(given, "thumbnailUrl", path),
        )
    )
    return Attachment(name, CONTENT_TYPE, b2a_base64(content, newline=False), len(content))


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


def _uri(given: Mapping[str, Any], name: str, path: str) -> str:
    text = read_string(given.get(name), f"{path}.{name}")
    if given.get(name) is not None and not is_uri(text):
        expected = "a URL such as https://example.com/file, in ASCII and without spaces"
        raise invalid_value(f"{path}.{name}", text, expected)
    return text


def _choice(given: Mapping[str, Any], name: str, path: str, *, choices: tuple[str, ...]) -> str:
    if given.get(name) is None:
        return "other"
    spelling = {choice.lower(): choice for choice in choices}
    return spelling[one_of(given[name], f"{path}.{name}", tuple(spelling))]
