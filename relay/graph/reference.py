"""A link to a file elsewhere that is attached to a message: Graph's referenceAttachment.

In MIME it is a list of URIs (RFC 2483 5) with one URI. What a list cannot hold is in its comments,
whose first line marks it, so that other lists of URIs stay files. Any mail program shows the file,
and its text is readable.
"""

import re

from msgspec import Struct

CONTENT_TYPE = "text/uri-list"
BYTES_MAX = 32 * 1024  # a longer list is a file
PROVIDERS = ("other", "oneDriveBusiness", "oneDriveConsumer", "dropbox")
PERMISSIONS = (
    *("other", "view", "edit", "anonymousView", "anonymousEdit"),
    *("organizationView", "organizationEdit"),
)
_MARK = "# referenceAttachment"
_COMMENT = re.compile(r"# (\w+): (\S+)")
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,31}:[!-~]{1,4000}")


class Reference(Struct, frozen=True):
    """The link; `provider` is of PROVIDERS, `permission` of PERMISSIONS. "" is not given."""

    url: str
    provider: str = "other"
    permission: str = "other"
    is_folder: bool = False
    preview_url: str = ""
    thumbnail_url: str = ""


def is_uri(text: str) -> bool:
    """Return whether a text is a URI: a scheme, and visible ASCII characters."""
    return _URI.fullmatch(text) is not None


def write_reference(reference: Reference) -> bytes:
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
    """Return the link in a list of URIs that write_reference() made, else None."""
    lines = content.decode("ascii", "replace").splitlines()
    if len(content) > BYTES_MAX or lines[:1] != [_MARK]:
        return None
    comments = {found[1]: found[2] for line in lines if (found := _COMMENT.fullmatch(line))}
    urls = [line for line in lines if line and not line.startswith("#")]
    if len(urls) != 1 or not is_uri(urls[0]):
        return None
    provider, permission = comments.get("providerType", ""), comments.get("permission", "")
    return Reference(
        url=urls[0],
        provider=provider if provider in PROVIDERS else "other",
        permission=permission if permission in PERMISSIONS else "other",
        is_folder=comments.get("isFolder") == "true",
        preview_url=comments.get("previewUrl", ""),
        thumbnail_url=comments.get("thumbnailUrl", ""),
    )
