"""The pickup daemon: steps 2 to 4, from a note to an accepted message.

On the path: the store's notes come in, MIME goes out by SMTP on the relay's own Unix socket.
Touches: the store through its Protocol, that socket, the store's log. Promises: a note ends with
its original filed, or a report in the sender's Inbox, or it is tried again; repeats are the same
message, because the submission id is its key.
"""

from relay.pickup.processing import Reporter
from relay.pickup.workers import Pickup

__all__ = ["Pickup", "Reporter"]
