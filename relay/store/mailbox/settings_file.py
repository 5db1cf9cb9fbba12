"""The settings of a mailbox: the file `relay-settings` next to the Maildir's files; and the file
`relay-replies`, which notes the senders that got automatic replies.

A file is replaced in one step and is durable when a write returns. A missing file gives the
defaults; so does one that cannot be read as settings, with a line in the log. No mail program
knows the files. Graph's mailboxSettings.
"""

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from msgspec import Struct

from relay.base.message.address import own_mailbox
from relay.base.message.receipt import OwedReceipt
from relay.base.message.time_zones import time_zone
from relay.base.observe.logs import get_logger
from relay.store.mailbox.maildir import open_message, remove, replace_durably
from relay.store.mailbox.store_part import StorePart, in_thread

FILE_NAME = "relay-settings"
REPLIES_FILE_NAME = "relay-replies"
REPLIED_MAX = 1000  # senders that are noted; the oldest are dropped
# limit: automatic replies of a mailbox in an hour
PER_HOUR_MAX = 100
ONCE_IN_US = 7 * 86_400_000_000  # a sender gets one reply
_HOUR_US = 3_600_000_000
_KNOWN_MAX = 100_000  # mailboxes
_BYTES_MAX = 1024 * 1024  # two texts take 400 KiB; earlier releases kept categories too

_log = get_logger("mailbox")


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

    def are_sent_at(self, time_us: int) -> bool:
        """Whether they are sent at this time."""
        is_now = self.start_us <= time_us < self.end_us
        return self.status == "alwaysEnabled" or (self.status == "scheduled" and is_now)

    def text_at(self, time_us: int, *, is_internal: bool) -> str:
        """Return what a sender inside or outside gets at this time, "" for nothing."""
        if not self.are_sent_at(time_us):
            return ""
        if is_internal:
            return self.internal.strip()
        return self.external.strip() if self.audience == "all" else ""


class UserSettings(Struct, frozen=True):
    """What a user has set. Files of earlier releases have more fields."""

    time_zone: str = "UTC"  # a name that time_zone() knows
    language: str = "en-US"  # an RFC 5646 tag
    language_name: str = "English (United States)"  # that clients show
    automatic_replies: AutomaticReplies = AutomaticReplies()  # that the mailbox sends


# not at the first use, which two threads may have at once: msgspec ends the process then
_decoder = msgspec.json.Decoder(UserSettings)


@dataclass(kw_only=True, eq=False, repr=False)
class SettingsFiles(StorePart):
    """The settings of all mailboxes. Methods raise StoreUnavailableError."""

    # by mailbox, of some: whether automatic replies are not disabled
    replying: dict[str, bool] = field(default_factory=dict)

    async def may_reply(self, account: str) -> bool:
        """Whether automatic replies are enabled or scheduled. The first call reads the disk."""
        if self.folders.is_fresh(account):
            return False
        if account not in self.replying:
            if len(self.replying) >= _KNOWN_MAX:
                self.replying.clear()
            status = (await self.read(account)).automatic_replies.status
            # unless a write has set it meanwhile
            self.replying.setdefault(account, status != "disabled")
        return self.replying[account]

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
        """Replace all settings, durably. If they have no automatic replies, forget the noted
        senders.
        """
        mailbox = self.folders.mailbox(account)
        with self.stripes.of(str(mailbox)):
            _replace(mailbox / FILE_NAME, msgspec.json.format(msgspec.json.encode(settings)))
            self.replying[account] = settings.automatic_replies.status != "disabled"
            if not self.replying[account]:
                remove(mailbox / REPLIES_FILE_NAME)

    @in_thread
    def note_reply(self, reply: OwedReceipt, *, time_us: int) -> bool:
        """Note, durably, that a sender gets an automatic reply; return whether it may get one.

        It may not, and nothing is noted, if it had another reply lately, or if too many replies
        were sent in the last hour.
        """
        path = self.folders.mailbox(reply.mailbox) / REPLIES_FILE_NAME
        sender, key = own_mailbox(reply.to), reply.submission_key
        noted: dict[str, tuple[int, str]] = {}  # time and key, the oldest first
        with self.stripes.of(str(path.parent)):
            with suppress(FileNotFoundError, ValueError), open_message(path) as file:
                noted = msgspec.json.decode(file.read(_BYTES_MAX), type=dict[str, tuple[int, str]])
            before_us, before = noted.pop(sender, (0, ""))
            # the same key: a crash interrupted this reply; abs(): the clock may have gone back
            if abs(time_us - before_us) < ONCE_IN_US:
                return before == key
            if sum(abs(time_us - at_us) < _HOUR_US for at_us, _ in noted.values()) >= PER_HOUR_MAX:
                return False
            noted[sender] = time_us, key
            _replace(path, msgspec.json.encode(dict([*noted.items()][-REPLIED_MAX:])))
        return True


def _replace(path: Path, octets: bytes) -> None:
    replace_durably(path, octets, part=path.with_name(f"{path.name}.new"))
