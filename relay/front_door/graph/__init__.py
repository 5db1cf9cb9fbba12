"""Step 1: the part of Microsoft Graph that Relay implements: sendMail, messages, mail folders.

A request is checked completely and passed to the mail store, which writes the draft and its pending
submission (steps 1 and 2). The 202 is sent when both are durable. An error response names the
field, the found and the expected value, and means that nothing was written.

How a request is handled:

- `app`: whose mailbox a request is for, its scopes
- `routes`: which handler has a path and method, which scopes it needs, what it adds; 400, 405; what
  Graph has and Relay has not (501); segments and patterns of paths; innermost mailFolders
- `admission`: how a repeat is recognised (Idempotency-Key, account, content; SDKs) and answered;
  limits of one account (429); what pressure refuses (503, 507)
- `mailbox_paths`: OData's keys in parentheses; which mailbox a path names (400, 403, 404)
- `graph_request`: what a handler reads of a request: ids, options, preferences, the JSON body, time
  zone, If-Match; with which id a message is shown, and with which names it is sent
- `dependencies`: what all handlers share: stores, clock, locks, limits on work at a time
- `entity_tags`: ETag, If-Match and If-None-Match
- `preferred_body`: Prefer: outlook.body-content-type
- `responses`: a page of a list; a change without a body (return=minimal)
- `errors`: each error with Graph's status, code and sentence, and who shows it
- `store_errors`: the mail store's errors as Graph's
- `item_ids`: ids: 404 for one that nothing has, 400 for text that cannot be an id
- `batch`: $batch: up to 20 requests in one, their order and dependencies
- `query_options`: $top, $skip, $select, $count ...; the Prefer header, page size
- `odata`: $filter, $orderby and $search
- `search_query`: POST /search/query
- `strict_profile`: what Graph refuses and Relay accepts by default, with Graph's texts: `[http]
  profile`, Prefer: relay.strict
- `json_values`: types and names in a JSON body, recipients too; the path in a 400

Messages:

- `send_mail`: sendMail, send of a draft, and what of a reply is sent: send-as rights, at most 500
  recipients, 202, saveToSentItems, relay.* preferences
- `mime_body`: a message as MIME: base64, streaming, recipients
- `message_parser`: a message's JSON: body, headers, read-only properties, messages as attachments
- `action_parameters`: the parameters of sendMail, reply, replyAll and forward
- `replies`: reply, replyAll and forward: To and Cc, body, quote, and which attachments go with them
- `messages`: list, get, create, PATCH, delete, move, copy; what of a sent message may change
- `message_pages`: when a page of messages ends, and its nextLink
- `serializer`: the JSON of messages, folders and users
- `extended_properties`: singleValue- and multiValueExtendedProperties, $expand
- `follow_up_flags`: a message's flag: its dates, and which changes are contradictions
- `delta`: delta queries: tokens, what has changed, 410 (when one is too old:
  `relay/store/mailbox/index/change_feed.py`)

Attachments:

- `attachments`: list, get, add and delete attachments; their JSON and $value
- `attachment_parser`: an attachment's JSON: name, media type, base64
- `upload_sessions`: ranges of a large attachment, their URL and token

Folders, settings, users:

- `mail_folders`: list, create, rename, move, delete folders; well-known ones (403)
- `users`: /me, /users: whose mailboxes a token may open; time zone, language, automatic
  replies; translateExchangeIds
- `subscriptions`: /subscriptions: what a client may ask for; 400, 403, 404, 501

Elsewhere: tokens: `relay/front_door/sign_in/authentication.py`; bodies, sizes and 413:
`relay/front_door/http/http_request.py`; when the draft is on disk:
`relay/submission/outbox/submit.py`; Subject and References of a reply:
`relay/base/message/conversation.py`; its quote: `relay/formats/quoting.py`.
"""

from relay.front_door.graph.app import create_app

__all__ = ["create_app"]
