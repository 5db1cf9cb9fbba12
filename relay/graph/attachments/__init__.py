"""Attachments at the front door: their JSON in and out, their handlers, and upload sessions.

On the path: step 1 for drafts; the store adds what comes and opens what is there.
Holds: of a large attachment a block is in memory; a 201 is durable.
Fails: ApiError for what cannot be read; the store's refusals.
Standards: Graph's attachment and uploadSession.
"""
