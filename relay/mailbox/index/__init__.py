"""The index of a mailbox: where its messages are, what they say, and what happened to them.

On the path: every reading request; quota; not the way of sendMail to its 202.
Holds: a cache beside the Maildir's files, caught up before each answer with whatever changed them.
Fails: StoreError's children; OSError when a mailbox cannot be read.
Standards: Maildir; docs/design.md 3.
"""

from relay.mailbox.index.indexes import Indexes
from relay.mailbox.index.located import Located

__all__ = ["Indexes", "Located"]
