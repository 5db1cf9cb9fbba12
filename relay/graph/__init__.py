"""Step 1, the front door: Graph's mail resources over HTTP.

On the path: takes a request from http, checks all of it, and hands it to the store, which writes
draft and note (steps 1 and 2); the 202 is sent when both are on disk.
Touches: the mail store and the accounts, through their Protocols; no file, no socket.
Inside: app and routes find the handler: messages, moving, sending, folders, listing, attachments/;
they read with parse, mime, options, prefer and odata/, and answer with show.
Promises: what it answers 202 or 201 is durable; what it refuses has written nothing, and the
refusal names the field, what was found and what was expected; nothing is silently dropped.
"""

from relay.graph.app import create_app

__all__ = ["create_app"]
