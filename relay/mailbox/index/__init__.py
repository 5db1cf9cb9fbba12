"""The index of a mailbox: where its messages are, what they say, and what happened to them.

On the path: every reading request; quota; not the way of sendMail to its 202.
Holds: a cache beside the Maildir's files, caught up before each answer with whatever changed them.
Inside: indexes and mailbox answer; catchup, watch, looking, claims and identity bring the rows to
what is on the disk; filling and facts read what a query needs; conditions, paging and querying make
SQL of it; feed has the changes; checking and comparing are for verify.
Fails: StoreError's children; OSError when a mailbox cannot be read.
Standards: Maildir; docs/design.md 3.
"""

from relay.mailbox.index.indexes import Indexes
from relay.mailbox.message_file import Located

__all__ = ["Indexes", "Located"]
