"""The settings of a mailbox: the file `relay-settings` next to the Maildir's files.

A file is replaced in one step and is durable when a write returns. A missing file gives the
defaults; so does one that cannot be read as settings, with a line in the log. No mail program
knows the files. Graph's mailboxSettings.
"""

from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec import Struct

from relay.base.message.time_zones import time_zone
from relay.base.observe.logs import get_logger
from relay.store.mailbox.maildir import open_message, replace_durably
from relay.store.mailbox.store_part import StorePart, in_thread

FILE_NAME = "relay-settings"
_BYTES_MAX = 1024 * 1024  # earlier releases kept texts of automatic replies, and categories

_log = get_logger("mailbox")


class UserSettings(Struct, frozen=True):
    """What a user has set. Files of earlier releases have more fields."""

    time_zone: str = "UTC"  # a name that time_zone() knows
    language: str = "en-US"  # an RFC 5646 tag
    language_name: str = "English (United States)"  # that clients show


class _Replies(Struct, frozen=True):
    status: str = "disabled"


class _OlderSettings(Struct, frozen=True):
    automatic_replies: _Replies = _Replies()


# not at the first use, which two threads may have at once: msgspec ends the process then
_decoder = msgspec.json.Decoder(UserSettings)
_older_decoder = msgspec.json.Decoder(_OlderSettings)


def has_automatic_replies(mailbox: Path) -> bool:
    """Return whether a release before 0.7.0 has set automatic replies in the mailbox at this path.
    They are not sent any more.
    """
    try:
        with open_message(mailbox / FILE_NAME) as file:
            return (
                _older_decoder.decode(file.read(_BYTES_MAX)).automatic_replies.status != "disabled"
            )
    except (OSError, ValueError):
        return False


@dataclass(kw_only=True, eq=False, repr=False)
class SettingsFiles(StorePart):
    """The settings of all mailboxes. Methods raise StoreUnavailableError."""

    @in_thread
    def read(self, account: str) -> UserSettings:
        """Return what the user has set, or the defaults."""
        path = self.folders.directory(account) / FILE_NAME
        try:
            with open_message(path) as file:
                octets = file.read(_BYTES_MAX)
        except FileNotFoundError:
            return UserSettings()
        try:
            settings = _decoder.decode(octets)
            time_zone(settings.time_zone)
        except ValueError as error:
            _log.repeated("warning", "settings unreadable", file=str(path), reason=str(error))
            return UserSettings()
        return settings

    @in_thread
    def write(self, account: str, settings: UserSettings) -> None:
        """Replace all settings, durably."""
        mailbox = self.folders.mailbox(account)
        with self.stripes.of(str(mailbox)):
            _replace(mailbox / FILE_NAME, msgspec.json.format(msgspec.json.encode(settings)))


def _replace(path: Path, octets: bytes) -> None:
    replace_durably(path, octets, part=path.with_name(f"{path.name}.new"))
