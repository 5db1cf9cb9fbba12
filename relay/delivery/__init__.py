"""Step 6: delivery, to local mailboxes and by SMTP to the next hop.

The dispatcher has the whole of it: `queue` says which claims are in memory and whose turn it is,
`remote` and the mailroom try them, conclude and settlement write down what came of it.
On the path: behind the spool's accept(), before its settle().
Touches: the spool's claims, sockets through smtp, Maildirs through the store.
Promises: at most one unsettled transaction per connection; limits per site; nothing tried after a
    drain.
"""

from relay.delivery.active_queue import WINDOW_BYTES, Window
from relay.delivery.attempt_recorder import Settler
from relay.delivery.connection_slots import ConnectionSlots
from relay.delivery.content_budget import Contents
from relay.delivery.local_delivery import LocalDelivery
from relay.delivery.retry import Cause, Schedule
from relay.delivery.scheduler import Dispatcher
from relay.delivery.site_limits import SiteOptions, parse_rate

__all__ = [
    "WINDOW_BYTES",
    "Cause",
    "ConnectionSlots",
    "Contents",
    "Dispatcher",
    "LocalDelivery",
    "Schedule",
    "Settler",
    "SiteOptions",
    "Window",
    "parse_rate",
]
