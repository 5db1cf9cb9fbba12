"""Entity tags: the ETag field of a version, and the change keys in If-Match and If-None-Match."""

import re

from relay.front_door.http.errors import bad_request, quoted

_ENTITY_TAG = re.compile(r'(?:W/)?"(?P<quoted>[!#-~]{1,512})"|(?P<bare>[!#-+.-~]{1,512})')


def etag_field(change_key: str) -> dict[str, str]:
    """Return the ETag field of a version."""
    return {"etag": f'W/"{change_key}"'}


def change_keys(tags: str, *, field_name: str = "If-Match") -> frozenset[str]:
    """Return the change keys in If-Match or If-None-Match; `*` gives an empty set.

    A key is an @odata.etag, strong or weak, or a bare changeKey. Raises ApiError 400.
    """
    if tags.strip() == "*":
        return frozenset()
    keys = set()
    for tag in tags.split(","):
        match = _ENTITY_TAG.fullmatch(tag.strip())
        if match is None:
            expected = "an @odata.etag, a changeKey, or *"
            raise bad_request(f"{field_name}: found {quoted(tags)}, expected {expected}.")
        keys.add(match["quoted"] or match["bare"])
    return frozenset(keys)
