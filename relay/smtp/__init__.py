"""The SMTP client, used by pickup (step 3) and delivery (step 6).

connect() opens a session with a target; each Connection runs one transaction after another. Every
wait has a time-out. Every reply is paired with its command, or the connection is closed. Each
recipient gets an outcome of its own.
"""

from relay.smtp.connect import ConnectError, Target, connect
from relay.smtp.connection import Connection, Timeouts
from relay.smtp.transaction import Transaction, TransactionRecipient, TransactionResult

__all__ = [
    "ConnectError",
    "Connection",
    "Target",
    "Timeouts",
    "Transaction",
    "TransactionRecipient",
    "TransactionResult",
    "connect",
]
