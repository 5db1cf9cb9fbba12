"""The routes of the pages, by the tables of the application."""

from relay.front_door.pages import app
from relay.store.spool.queue_commands import Operation


def routes() -> set[str]:
    """Return the paths of all pages, with names in braces."""
    found = {"login", "logout", "static"}
    for path in (*app.PAGES, *app.DEVELOPMENT_PAGES):
        parts = list(path)
        if parts[1:]:
            parts[1] = {"*": "{key}", **dict.fromkeys(Operation, "{operation}")}.get(
                parts[1], parts[1]
            )
        found.add("/".join("..." if part == "*" else part for part in parts))
    return found
