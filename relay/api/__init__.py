"""/relay/v1, health and metrics: what happened to a message, and the queue.

On the path: beside it; it shows all seven steps and takes an operator's commands for the queue.
Touches: journeys, queue and metrics, through Protocols; no store, no spool of its own.
Promises: an account sees its own messages only, others' are 404; the JSON is that of docs/names.md,
the same as `relay trace` prints; waiting wakes on changes.
"""

from relay.api.app import create_app, create_control_app
from relay.api.dependencies import Changes, Journeys, Means

__all__ = ["Changes", "Journeys", "Means", "create_app", "create_control_app"]
