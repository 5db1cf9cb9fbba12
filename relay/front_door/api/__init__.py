"""The operator's API: /relay/v1 (journeys and queue commands), health checks and metrics.

It shows all seven steps and changes the queue only through the Protocols in `dependencies`. The
roles read and operate see all messages; an account of the role user sees its own, others are 404.
docs/names.md describes the JSON; `relay trace`
prints the same.

- `app`: answers /healthz, /readyz (readiness) and /metrics itself, without a token; the paths of
  /relay/v1, and who asks: a bearer token, or run/control.sock; in a development relay
  /relay/v1/dev/...: clock, reset, deletion; the scenario of the simulated internet;
  /relay/v1/webhooks: a list, a test, a replay
- `dependencies`: who may read, read contents and operate (Principal); what the room needs of others
- `request_parameters`: query parameters and JSON bodies: conditions of the queue, limits, cursors
- `handlers`: what needs a principal: messages, waiting for a state, queue commands, refusals, prune
- `tags`: the tags of messages of a development relay
- `search_text`: text of the search box and of `q`: from:, client:, state:, before: ...; GET /log
- `content_search`: conditions on contents: words, attachments, unread copies
- `message_source`: where the content of a message is found: spool, mailbox, or a report;
  the copies in mailboxes: read, unread, their removal; what a row of the list shows of a content
- `event_streams`: /relay/v1/events: recorded events as server-sent events
- `explain`: /relay/v1/explain: its question, and who may ask
- `submissions`: scheduled, held and restored submissions, in lists and commands of the queue
- `release`: to whom captured mail may leave this machine, in a development relay

Elsewhere: why /readyz is 503: `relay/operation/app/front_door.py`; what a queue command does to an
entry: `relay/store/spool/shared/decisions.py`; how a journey is made:
`relay/store/journeys/journey.py`; the answer of explain: `relay/operation/app/explain.py`.
"""

from relay.front_door.api.app import PREFIXES, create_app, create_control_app
from relay.front_door.api.dependencies import ApiDependencies, DevelopmentControls
from relay.front_door.api.event_streams import EventStreams
from relay.front_door.api.message_source import MessageSources

__all__ = [
    "PREFIXES",
    "ApiDependencies",
    "DevelopmentControls",
    "EventStreams",
    "MessageSources",
    "create_app",
    "create_control_app",
]
