"""The settings of a mailbox: the file `relay-settings` next to the Maildir's files.

The file is replaced in one step and is durable when a write returns. A missing file gives the
defaults; so does one that cannot be read as settings, with a line in the log. No mail program
knows the file. Graph's mailboxSettings.
"""

from dataclasses import dataclass
from datetime import time

import msgspec
from msgspec import Struct

from relay.base.message.time_zones import time_zone
from relay.base.observe.logs import get_logger
from relay.store.mailbox.maildir import open_message, remove, sync_directory, write_synced
from relay.store.mailbox.store_part import StorePart, in_thread

FILE_NAME = "relay-settings"
_BYTES_MAX = 1024 * 1024  # 200 categories with the longest names take 400 KiB, two texts as much

_log = get_logger("mailbox")


class WorkingHours(Struct, frozen=True):
    """The hours of a working day; `time_zone` "" is that of the mailbox."""

    days: tuple[str, ...] = ("monday", "tuesday", "wednesday", "thursday", "friday")
    start: time = time(8)
    end: time = time(17)
    time_zone: str = ""


class MasterCategory(Struct, frozen=True):
    """A category that the user has given a colour: Graph's names none, preset0 to preset24."""

    id: str
    name: str
    color: str = "none"


class AutomaticReplies(Struct, frozen=True):
    """Graph's automaticRepliesSetting; `status` and `audience` are its words. The texts are as the
    client wrote them, HTML or plain. The times are in wall clock time.
    """

    status: str = "disabled"  # alwaysEnabled, scheduled
    audience: str = "none"  # who outside gets `external`: none, contactsOnly, all
    internal: str = ""
    external: str = ""
    start_us: int = 0
    end_us: int = 0


class UserSettings(Struct, frozen=True):
    """What a user has set. The zones are names that time_zone() knows, `language` is an RFC 5646
    tag with the name that clients show. The formats are .NET's patterns, and the categories are
    those of masterCategories; both are for clients only.
    """

    time_zone: str = "UTC"
    language: str = "en-US"
    language_name: str = "English (United States)"
    date_format: str = "M/d/yyyy"
    time_format: str = "h:mm tt"
    working_hours: WorkingHours = WorkingHours()
    categories: tuple[MasterCategory, ...] = ()
    automatic_replies: AutomaticReplies = AutomaticReplies()


@dataclass(kw_only=True, eq=False, repr=False)
class SettingsFiles(StorePart):
    """The settings of all mailboxes. Methods raise StoreUnavailableError."""

    @in_thread
    def read(self, account: str) -> UserSettings:
        """Return what the user has set, or the defaults."""
        path = self.folders.mailbox(account) / FILE_NAME
        try:
            with open_message(path) as file:
                octets = file.read(_BYTES_MAX)
        except FileNotFoundError:
            return UserSettings()
        try:
            settings = msgspec.json.decode(octets, type=UserSettings)
            for name in (settings.time_zone, settings.working_hours.time_zone or "UTC"):
                time_zone(name)
        except ValueError as error:  # msgspec's errors are ValueErrors
            _log.warning("settings unreadable", file=str(path), reason=str(error))
            return UserSettings()
        return settings

    @in_thread
    def write(self, account: str, settings: UserSettings) -> None:
        """Replace all settings, durably."""
        mailbox = self.folders.mailbox(account)
        fresh = mailbox / f"{FILE_NAME}.new"
        with self.stripes.of(str(fresh)):
            remove(fresh)  # left by a crash
            try:
                write_synced(fresh, msgspec.json.format(msgspec.json.encode(settings)))
                fresh.rename(mailbox / FILE_NAME)
            finally:
                remove(fresh)
            sync_directory(mailbox)
