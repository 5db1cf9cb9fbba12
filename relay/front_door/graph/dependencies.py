"""What the handlers of the Graph API need: stores, clock, and limits that all requests share."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from weakref import WeakValueDictionary

from relay.base.accounts.account import AccountDirectory
from relay.base.accounts.usage import UsageCounter
from relay.base.clock import Clock, Ids
from relay.base.crashpoints import CrashPoints
from relay.base.pressure import Pressure
from relay.base.turns import Turns
from relay.front_door.graph import strict_profile
from relay.front_door.http.http_request import HttpRequest
from relay.front_door.notifications.subscriptions import Subscriptions
from relay.submission.outbox.store import FileStore

# limit of Graph: larger MIME, and ranges of uploads, at once; shared the same way
STREAMED_BODIES_MAX = 32
_CONVERSIONS_MAX = 2  # threads that convert bodies to the preferred type
_ANSWERS_MAX = 4  # replies and forwards that are composed at a time: each holds its original's body


@dataclass(frozen=True, slots=True)
class GraphDependencies:
    """What the handlers need."""

    store: FileStore  # the mailboxes
    accounts: AccountDirectory  # those in force
    clock: Clock  # for the times of messages
    ids: Ids  # for new messages and submissions
    hostname: str  # of Message-IDs that Relay makes
    public_url: str  # the beginning of links; "": as the client addressed the relay
    crash: CrashPoints  # for crash tests
    max_upload: int  # of a streamed body, in bytes
    profile: strict_profile.Profile  # of requests without a preference
    pressure: Pressure  # whether new mail is taken now
    subscriptions: Subscriptions  # who is notified of changes
    usage: UsageCounter  # counts what accounts send to the outside
    has_pages: bool = False  # whether there is a page for each message
    # whether a mailbox has its share of the queue, and sends nothing now
    has_share: Callable[[str], bool] = lambda _mailbox: False
    # by mailbox, and mailbox/draft: its PATCHes run one at a time
    patch_locks: WeakValueDictionary[str, asyncio.Lock] = field(default_factory=WeakValueDictionary)
    # accounts write bodies to files in turn
    streamed_bodies: Turns = field(
        default_factory=partial(Turns, "streamed bodies", STREAMED_BODIES_MAX)
    )
    # and convert message bodies
    conversions: Turns = field(default_factory=partial(Turns, "conversions", _CONVERSIONS_MAX))
    # and compose replies and forwards
    answers: Turns = field(default_factory=partial(Turns, "replies", _ANSWERS_MAX))

    def base_url(self, request: HttpRequest) -> str:
        """Return the URL of the API as the client sees it."""
        return request.base_url(self.public_url, self.hostname)

    def root_url(self, request: HttpRequest) -> str:
        """Return the URL of the version of the API that is requested."""
        return f"{self.base_url(request)}/{request.segments[0].lower()}"
