"""Names of folders: what people call one, and the directory that Maildir++ makes of it.

On the path: folders and the folder tree ask it; the names of other programs are read here too.
Holds: what folder_name() makes is read back as it was given, by Relay and by IMAP servers.
Fails: FolderError for a name that a Maildir++ cannot hold; the text says why.
Standards: Maildir++ (a directory `.A.B` is B within A); RFC 3501 5.1.3 (modified UTF-7).
"""

import os
import unicodedata
from base64 import b64encode

from relay.mailbox.types import FolderError

SEPARATOR = "."
DIRECTORY_BYTES_MAX = 255
# The one separates folders, the other directories, and an encoded one shows as "&AC4-" in Dovecot.
# These look alike, hardly anybody types them, and every IMAP client shows them.
_STAND_INS = {".": "\N{ONE DOT LEADER}", "/": "\N{DIVISION SLASH}"}
_TO_STAND_INS = str.maketrans(_STAND_INS)
_FROM_STAND_INS = str.maketrans({stand_in: sign for sign, stand_in in _STAND_INS.items()})


def folder_name(display_name: str) -> str:
    """Return the part of a directory's name that stands for a folder.

    Raises FolderError.
    """
    name = unicodedata.normalize("NFC", display_name)
    if not name.strip():
        raise FolderError("A folder's name needs a visible character.")
    for position, character in enumerate(name):
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp"):
            raise FolderError(
                f"A folder's name cannot have the character U+{ord(character):04X}"
                f" (found at position {position})."
            )
    if name.startswith("~"):
        raise FolderError("A folder's name cannot begin with '~': IMAP servers refuse to open it.")
    return _to_modified_utf7(name.translate(_TO_STAND_INS))


def one_name(name: str) -> str:
    """Return a part of a directory's name, perhaps of several folders, as that of one."""
    return name.replace(SEPARATOR, _to_modified_utf7(_STAND_INS[SEPARATOR]))


def shown_name(name: str) -> str:
    """Return what people call the folder of a (part of a) directory's name."""
    text = os.fsencode(name).decode("utf-8", "replace")
    shown = SEPARATOR.join(_from_modified_utf7(each) for each in text.split(SEPARATOR))
    return shown.translate(_FROM_STAND_INS)


def same_name(one: str, other: str) -> bool:
    """Whether two display names are the same for people."""
    return _compared(one) == _compared(other)


def checked_directory(name: str) -> str:
    """Return a directory's name if it is not too long. Raises FolderError."""
    if (length := len(os.fsencode(name))) > DIRECTORY_BYTES_MAX:
        raise FolderError(
            "The folder's name is too long: together with those of the folders above it, and"
            f" encoded for the disk, it has {length} bytes, expected at most"
            f" {DIRECTORY_BYTES_MAX}."
        )
    return name


def _compared(name: str) -> str:
    return unicodedata.normalize("NFC", name).translate(_FROM_STAND_INS).casefold()


def _to_modified_utf7(text: str) -> str:
    pieces: list[str] = []
    coded = ""
    for character in f"{text}\0":  # the end is no text: what is gathered goes out before it
        if character != "\0" and not " " <= character <= "~":
            coded += character
            continue
        if coded:
            octets = b64encode(coded.encode("utf-16-be")).decode().rstrip("=")
            pieces.append(f"&{octets.replace('/', ',')}-")
            coded = ""
        pieces.append("&-" if character == "&" else character)
    return "".join(pieces[:-1])


def _from_modified_utf7(name: str) -> str:
    """Read a name as IMAP servers write it; one that is written otherwise stays as it is."""
    pieces = name.split("&")
    text = pieces[0]
    for piece in pieces[1:]:
        coded, found, rest = piece.partition("-")
        if not found:
            return name
        try:
            text += f"+{coded.replace(',', '/')}-".encode().decode("utf-7") if coded else "&"
            text.encode()  # half of a surrogate pair is no text
        except UnicodeError:
            return name
        text += rest
    return text
