"""The ids of messages in Graph, and how they are read.

They are Graph's immutable ids: a message has one id, before and after sending and in any folder.
The store's ids are the same, so nothing is converted.
"""

import re

from relay.http.errors import ApiError, quoted

MALFORMED = "ErrorInvalidIdMalformed"
_ID = re.compile(r"[A-Za-z0-9._=+-]{1,512}")


def is_graph_id(text: str) -> bool:
    """Return whether a text may be the id of an item."""
    return _ID.fullmatch(text) is not None


def read_message_id(text: str) -> str:
    """Return the store's id for the id of a message in a path. Raises ApiError 400."""
    if not is_graph_id(text):
        raise ApiError(400, MALFORMED, f"Id is malformed: {quoted(text)}.")
    return text
