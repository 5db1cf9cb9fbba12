"""Schemas after this Relay's, by a migration in two steps: what its runner does with later ones."""

from collections.abc import Callable
from typing import Any

from relay.store.spool.sqlite import migrate

VERSION = migrate.SCHEMA_VERSION
NEXT = VERSION + 2
STEPS = (
    (
        VERSION + 1,
        """ALTER TABLE content ADD COLUMN noted INTEGER NOT NULL DEFAULT 0;
        UPDATE content SET noted = size;""",
    ),
    (NEXT, "CREATE INDEX content_noted ON content (noted);"),
)
_LAST_COLUMN = (
    "    crc32 INTEGER NOT NULL            -- of data, or of the file followed by the header\n"
)


def use(patch: Callable[[object, str, Any], object] = setattr) -> None:
    """Have this process work with the next schema; `patch` is monkeypatch.setattr in a test."""
    made = migrate.schema()
    noted = "    crc32 INTEGER NOT NULL,\n    noted INTEGER NOT NULL DEFAULT 0\n"
    assert made.count(_LAST_COLUMN) == 1
    text = made.replace(_LAST_COLUMN, noted) + STEPS[1][1]
    patch(migrate, "SCHEMA_VERSION", NEXT)
    patch(migrate, "migrations", lambda: STEPS)
    patch(migrate, "schema", lambda: text)
