"""Graph's default ids of messages (restId), which change when a message moves to another folder.

A restId contains the store's ids of the message and of its folder; restIds are not stored. The ids
are at the place of Exchange's database ids: after the length and text of a mailbox's GUID, in a
Message EntryID. MS-OXCDATA 2.2.4.2; 152 characters, as in "Converting item and folder IDs via the
Graph API" (michev.info).
"""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from contextlib import suppress
from uuid import UUID

_GUID = str(UUID(int=0)).encode()  # of a mailbox: the same in all of them
_ENTRY_BYTES = 70
_HEAD = b"\0\3" + len(_GUID).to_bytes(2, "little") + _GUID  # the first two octets: with a GUID
_HEAD += b"\0" + _ENTRY_BYTES.to_bytes(2, "little") + bytes(22)  # flags, provider, type
_PART_BYTES = 24  # a GUID, a counter and two octets in each half of the EntryID
_BEGINNING = urlsafe_b64encode(_HEAD[: len(_HEAD) // 3 * 3]).decode()


def rest_id(message_id: str, folder_id: str) -> str:
    """Return the id that a message has in a folder, in base64url."""
    parts = (part.encode().ljust(_PART_BYTES, b"\0") for part in (folder_id, message_id))
    return urlsafe_b64encode(_HEAD + b"".join(parts)).decode()


def read_rest_id(text: str) -> tuple[str, str]:
    """Return the store's ids of message and folder; `text` and "" if `text` is no restId."""
    if text.startswith(_BEGINNING):
        with suppress(ValueError):
            octets = urlsafe_b64decode(text)[len(_HEAD) :]
            parts = (octets[:-_PART_BYTES], octets[-_PART_BYTES:])
            folder_id, message_id = (part.rstrip(b"\0").decode("ascii") for part in parts)
            is_sound = folder_id.isalnum() and message_id.isalnum()
            if is_sound and rest_id(message_id, folder_id) == text:
                return message_id, folder_id
    return text, ""
