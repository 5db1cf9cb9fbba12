"""The attachments of stored messages, and what is uploaded to become one.

On the path: graph's attachments and upload sessions; a draft that changes so is one of step 1.
Holds: no attachment is in memory; what an answer says is on disk, synced.
Fails: StoreError's children; OSError when the disk refuses.
Standards: Graph's attachment and uploadSession.
"""

from relay.mailbox.attachments.stored import ATTACHMENTS_MAX, found_attachment

__all__ = ["ATTACHMENTS_MAX", "found_attachment"]
