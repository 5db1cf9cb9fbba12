"""Step 6: delivery, to local mailboxes and by SMTP to the next hop.

On the path: behind the spool's accept(), before its settle().
Touches: the spool's claims, sockets through smtp, Maildirs through the store.
Promises: at most one unsettled transaction per connection; limits per site; nothing tried after a
    drain.
"""

from relay.delivery.contents import Contents
from relay.delivery.dispatcher import Dispatcher
from relay.delivery.local import LocalDelivery
from relay.delivery.schedule import Schedule
from relay.delivery.settlement import Settler
from relay.delivery.site import SiteOptions
from relay.delivery.slots import ConnectionSlots
from relay.delivery.window import WINDOW_BYTES, Window

__all__ = [
    "WINDOW_BYTES",
    "ConnectionSlots",
    "Contents",
    "Dispatcher",
    "LocalDelivery",
    "Schedule",
    "Settler",
    "SiteOptions",
    "Window",
]
