"""Step 6: delivery, to local mailboxes and by SMTP to the next hop.

`scheduler` is the queue manager: it takes claims from the spool and gives them to `site` (SMTP) or
`local_delivery`. `active_queue` bounds the claims in memory, `queue_scanner` fetches due entries,
`retry` has the retry schedule, `host_selection` chooses the next host if one does not answer, and
`attempt_recorder` commits the result of each attempt. A connection has at most one transaction that
is not settled, so a crash causes at most one second copy for each connection.
"""

from relay.delivery.active_queue import ACTIVE_QUEUE_BYTES, ActiveQueue
from relay.delivery.attempt_recorder import AttemptRecorder
from relay.delivery.connection_slots import ConnectionSlots
from relay.delivery.content_cache import ContentCache
from relay.delivery.local_delivery import LocalDelivery
from relay.delivery.retry import DeferralCause, RetrySchedule
from relay.delivery.scheduler import DeliveryScheduler
from relay.delivery.site_limits import SiteOptions, parse_rate

__all__ = [
    "ACTIVE_QUEUE_BYTES",
    "ActiveQueue",
    "AttemptRecorder",
    "ConnectionSlots",
    "ContentCache",
    "DeferralCause",
    "DeliveryScheduler",
    "LocalDelivery",
    "RetrySchedule",
    "SiteOptions",
    "parse_rate",
]
