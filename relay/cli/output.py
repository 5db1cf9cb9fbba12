"""Stdout, for facts only.

On the path: every verb prints with these.
Holds: JSON is UTF-8 whatever the terminal speaks; a document goes out whole, a stream line by line.
Fails: BrokenPipeError when nobody reads any more, OSError when stdout cannot be written.
Standards: RFC 8259, JSON lines.
"""

import sys
from typing import Any

import click
import msgspec


def print_json(value: Any) -> None:
    """One JSON document, indented for people."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))


def print_json_line(value: Any) -> None:
    """One JSON document on a line of its own, there at once."""
    click.echo(msgspec.json.encode(value))


def print_lines(lines: list[str]) -> None:
    """Lines for people."""
    click.echo("\n".join(lines))


def flush() -> None:
    """Make sure of what was printed, while an error can still be told."""
    if sys.stdout is not None:
        sys.stdout.flush()
