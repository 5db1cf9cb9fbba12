"""Step 1: the part of Microsoft Graph that Relay implements: sendMail, messages, mail folders.

A request is checked completely and passed to the mail store, which writes the draft and its pending
submission (steps 1 and 2). The 202 is sent when both are durable. An error response names the
field, the found and the expected value, and means that nothing was written.

`app` authorizes a request, `routes` finds its handler: messages, send_mail, mail_folders,
attachments, upload_sessions, users and others; `batch` handles requests that come in one,
`idempotency` answers those that were accepted before. `message_parser` reads JSON, `mime_body`
MIME, `query_options` and `odata` the query; `serializer` writes the response.
"""

from relay.graph.app import create_app

__all__ = ["create_app"]
