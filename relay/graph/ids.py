"""The ids of messages in Graph: made from the store's ids, and read, in this module only.

They are Graph's immutable ids: a message has one id, before and after sending and in any folder.
The store's ids are the same, so nothing has to be converted. Ids that change with the folder would
be made here from a message's id and its folder's.
"""

import re

from relay.http.errors import ApiError, quoted
from relay.mailbox.types import MessageDelta, StoredMessage

MALFORMED = "ErrorInvalidIdMalformed"
_ID = re.compile(r"[A-Za-z0-9._=+-]{1,512}")


def message_graph_id(message: StoredMessage) -> str:
    """Return the id of a message in responses and URLs."""
    return message.id


def removed_graph_id(change: MessageDelta) -> str:
    """Return the id of a message that is not in the folder of a delta query any more."""
    return change.message_id


def is_graph_id(text: str) -> bool:
    """Return whether a text may be the id of an item."""
    return _ID.fullmatch(text) is not None


def read_message_id(text: str) -> str:
    """Return the store's id for the id of a message in a path. Raises ApiError 400."""
    if not is_graph_id(text):
        raise ApiError(400, MALFORMED, f"Id is malformed: {quoted(text)}.")
    return text
