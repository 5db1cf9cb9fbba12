"""The part of Microsoft Graph that Relay implements: messages, mail folders, sendMail (step 1).

`app` and `routes` find the handler of a request: messages, send_mail, mail_folders, attachments,
upload_sessions, users. They read JSON with message_parser and json_values, MIME with mime_body, and
query options with query_options and odata/, and answer with serializer. Every error names the
field, what was found and what was expected; then nothing has been written.
"""

from relay.graph.app import create_app

__all__ = ["create_app"]
