"""The operator's API: /relay/v1 (journeys and queue commands), health checks and metrics.

It shows all seven steps and changes the queue only through the Protocols in `dependencies`. An
account sees only its own messages; others are 404. docs/names.md describes the JSON, which is the
same as that of `relay trace`.
"""

from relay.api.app import create_app, create_control_app
from relay.api.dependencies import ApiDependencies, DevelopmentControls
from relay.api.event_streams import EventStreams
from relay.api.message_source import MessageSources

__all__ = [
    "ApiDependencies",
    "DevelopmentControls",
    "EventStreams",
    "MessageSources",
    "create_app",
    "create_control_app",
]
