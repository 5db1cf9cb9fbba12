"""The keys and tables of relay.toml that releases have removed: all of them, for good.

A file may still have them, as the package of an older release wrote it: they are left out when it
is read, and a start, a reload and `relay check` warn of each. Without these nothing is open and
nothing is lost: mail is retried, and recipients, disk and tasks are bounded in other ways. A key
whose loss would open or lose something does not belong here: it stays an unknown key, a fault.
"""

from collections.abc import Mapping
from typing import Final

from relay.base.settings.tree import DeliverySettings, Settings, SmtpListener, SpoolSettings

# what a warning says of each: the release, and what applies now
REMOVED_KEYS: Final[Mapping[type, Mapping[str, str]]] = {
    Settings: {"pickup": "0.4.0 has removed: pickup tries for a day"},
    DeliverySettings: {"retry_by_class": "0.4.0 has removed: delivery.retry is for all deferrals"},
    SmtpListener: {"max_recipients_per_session": "0.3.0 has removed: see max_messages"},
    SpoolSettings: {
        "keep_size": "0.3.0 has removed: spool.keep alone limits the history",
        "reserve_size": "0.3.0 has removed: the reserve is a quarter of pressure.disk_free",
    },
}
