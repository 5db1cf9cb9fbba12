"""/relay/v1, health and metrics: what happened to a message, and queue administration.

An account sees only its own messages; others are 404. The JSON is described in docs/names.md and is
the same as `relay trace` prints.
"""

from relay.api.app import create_app, create_control_app
from relay.api.dependencies import ApiDependencies, ChangeNotifier, JourneyReader

__all__ = [
    "ApiDependencies",
    "ChangeNotifier",
    "JourneyReader",
    "create_app",
    "create_control_app",
]
