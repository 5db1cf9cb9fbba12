"""The client's wire, shared by pickup (step 3) and delivery (step 6).

On the path: a caller connects to one target and has transactions there, one after another.
Touches: sockets it opened. Promises: every wait is bounded, every reply is paired with its
command or the connection is closed, and each recipient gets an outcome of its own.
"""

from relay.smtp.connect import ConnectError, Target, connect
from relay.smtp.connection import Connection, Timeouts
from relay.smtp.transaction import Recipient, Transaction, TransactionResult

__all__ = [
    "ConnectError",
    "Connection",
    "Recipient",
    "Target",
    "Timeouts",
    "Transaction",
    "TransactionResult",
    "connect",
]
