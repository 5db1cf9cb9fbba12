"""Ids of messages, folders and attachments in a request: which texts can be an id.

A text that cannot be an id is a 400 `Id is malformed.` An id that nothing has is a 404. Relay's own
ids are Graph's immutable ids: a message has one, before and after sending and in any folder.
relay/base/message/rest_id.py has the ids that change with the folder.
"""

import re

from relay.front_door.graph import errors
from relay.front_door.http.errors import quoted
from relay.store.mailbox.folders import WELL_KNOWN_NAMES

# Relay's own (relay/base/clock.py; folders' have a letter in front), the position of an attachment,
# and Graph's: base64url of some tens of octets.
_ID = re.compile(r"[0-9A-Za-z]{16,17}|\d{1,4}|[A-Za-z0-9+=_-]{32,512}", re.ASCII)


def item_id_of(text: str) -> str:
    """Return an id. Raises ApiError 400 if it cannot be one."""
    if _ID.fullmatch(text) is None:
        raise errors.ID_MALFORMED(f"Found the id {quoted(text)}.")
    return text


def folder_id_of(text: str) -> str:
    """Return a folder's id or well-known name. Raises ApiError 400 if it can be neither."""
    return text if text.lower() in WELL_KNOWN_NAMES else item_id_of(text)
