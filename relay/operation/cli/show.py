"""`relay show`: the content of a message, also of captured mail.

Exits 65 for an unknown message, a message whose content was removed, and a part that the message
does not have; 69 without a relay. Control characters are replaced on a terminal; a file or a pipe
gets the exact octets.
"""

import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from http import HTTPStatus
from typing import Any

import click

from relay.base.clock import rfc3339
from relay.base.files import OpenOctets
from relay.base.message.content import Octets
from relay.base.message.properties import EmailAddress
from relay.base.phrases import named
from relay.base.running_relay import ControlError
from relay.formats.draft import AttachmentFacts
from relay.formats.html_text import html_to_text
from relay.formats.read_mime import ReadBodies, ReadMessage, read_attachments, read_mime, read_parts
from relay.formats.transfer_encoding import decoded_blocks
from relay.operation.cli.errors import CommandError, ExitCode
from relay.operation.cli.options import KEY, CommandContext, common_options
from relay.operation.cli.output import printable
from relay.operation.cli.relay_client import operator_client, unknown_message
from relay.store.journeys.document import Journey

_IN_MEMORY_BYTES = 1 << 20


@click.command()
@click.argument("key", type=KEY, metavar="ID|ADDRESS|last")
@click.option("--source", is_flag=True, help="Write the message as it is, octet for octet.")
@click.option("--html", is_flag=True, help="Write the HTML body.")
@click.option(
    "--attachment",
    type=click.IntRange(1),
    metavar="N",
    help="Write the content of an attachment; the list numbers them from 1.",
)
@common_options
def show(
    context: CommandContext, key: str, *, source: bool, html: bool, attachment: int | None
) -> None:
    """Show the content of a message: headers, text and a list of attachments.

    ID is a Graph id, a submission id, a queue id or a Message-ID; an ADDRESS selects the newest
    message of that sender or recipient.
    """
    if source + html + (attachment is not None) + context.json > 1:
        names = "--source, --html, --attachment and --json"
        raise click.UsageError(f"expected at most one of {names}")
    client = operator_client(context)
    try:
        journey = client.message_from_relay(key)
    except ControlError as error:
        if error.status != HTTPStatus.NOT_FOUND:
            raise
        raise unknown_message("show", key, client) from None
    blocks = client.source(journey.key)
    if source:
        _write(blocks)
        return
    with tempfile.TemporaryFile() as file:
        for block in blocks:
            file.write(block)
        file.flush()
        octets = OpenOctets.of(file)
        if html:
            _write_html(octets)
        elif attachment is not None:
            _write_attachment(octets, attachment)
        else:
            message, bodies = read_mime(octets), read_parts(octets).bodies
            # `relay show ID`: `{id, graph_id, submission_id, message_id, state, copies: [{address,
            # graph_id}], subject, from, sender, to, cc, bcc, reply_to, date, text, html,
            # attachments: [{number, name, type, size}]}`; a person is `{name, address}`; `text` and
            # `html` may be null; 65: no such message, content or part
            context.show(
                message_document(journey, message, bodies),
                lambda: message_lines(journey, message, bodies),
            )


def message_document(journey: Journey, message: ReadMessage, bodies: ReadBodies) -> dict[str, Any]:
    """Return the JSON of `relay show`."""
    ids = ("id", "graph_id", "submission_id", "message_id", "state")
    fields, date_us = message.properties, message.date_us
    people = {"from": fields.from_, "sender": fields.sender}
    lists = {"to": fields.to, "cc": fields.cc, "bcc": fields.bcc, "reply_to": fields.reply_to}
    return {
        **{name: getattr(journey, name) for name in ids},
        "copies": [
            {"address": copy.address, "graph_id": copy.graph_id}
            for copy in journey.recipients
            if copy.graph_id
        ],
        "subject": fields.subject,
        **{name: _person(person) if person else None for name, person in people.items()},
        **{name: [_person(person) for person in persons] for name, persons in lists.items()},
        "date": None if date_us is None else rfc3339(date_us),
        "text": bodies.text,
        "html": bodies.html,
        "attachments": [
            {"number": number, "name": part.name, "type": part.content_type, "size": part.size}
            for number, part in enumerate(message.attachments, 1)
        ],
    }


def message_lines(journey: Journey, message: ReadMessage, bodies: ReadBodies) -> list[str]:
    """Return headers, text and attachments for a terminal."""
    fields = message.properties
    head = {
        "Id": journey.key,
        "State": journey.state,
        "From": _names([fields.from_]),
        "Sender": _names([fields.sender]),
        "Reply-To": _names(fields.reply_to),
        "To": _names(fields.to),
        "Cc": _names(fields.cc),
        "Bcc": _names(fields.bcc),
        "Date": "" if message.date_us is None else rfc3339(message.date_us),
        "Subject": fields.subject,
        "Message-ID": fields.internet_message_id,
        "Graph ids": _graph_ids(journey),
    }
    lines = [f"{name:<11} {value}" for name, value in head.items() if value]
    text = bodies.text
    if text is None:
        text = html_to_text(bodies.html) if bodies.html is not None else ""
    if text.strip():
        lines += ["", *(line.expandtabs() for line in text.rstrip().splitlines())]
    if message.attachments:
        rows = enumerate(message.attachments, 1)
        lines += ["", *(_attachment_line(number, part) for number, part in rows)]
    return lines


def _attachment_line(number: int, part: AttachmentFacts) -> str:
    name = part.name or "(no name)"
    return f"{number:>3}  {name}  {part.content_type}  {part.size:,} bytes"


def _graph_ids(journey: Journey) -> str:
    """Return the Graph ids of the sender's message and of the first copies for recipients."""
    copies = [(copy.graph_id, copy.address) for copy in journey.recipients if copy.graph_id]
    own = [(journey.graph_id, "the sender's")] if journey.graph_id else []
    known = [f"{graph_id} ({address})" for graph_id, address in [*own, *copies]]
    return named(known, most=10)


def _names(people: Sequence[EmailAddress | None]) -> str:
    names = (
        f"{who.name} <{who.address}>" if who.name and who.address else who.name or who.address
        for who in people
        if who
    )
    return ", ".join(names)


def _person(person: EmailAddress) -> dict[str, str]:
    return {"name": person.name, "address": person.address}


def _write_html(octets: Octets) -> None:
    html = read_parts(octets).bodies.html
    if html is None:
        raise CommandError(ExitCode.DATA, "relay show: the message has no HTML body")
    _write([html.encode("utf-8", "replace")])


def _write_attachment(octets: Octets, number: int) -> None:
    attached = read_attachments(octets)
    if number > len(attached):
        actual = f"the message has {len(attached)}"
        raise CommandError(ExitCode.DATA, f"relay show: --attachment {number}: {actual}")
    part = attached[number - 1]
    if _is_terminal() and not part.facts.content_type.startswith("text/"):
        text = f"--attachment {number}: {part.facts.content_type} is not for a terminal"
        raise click.UsageError(f"{text}; redirect it to a file")
    _write(decoded_blocks(part.octets, part.encoding))


def _is_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


def _write(blocks: Iterable[bytes]) -> None:
    """Write octets to stdout; to a terminal, as printable text."""
    if _is_terminal():
        for line in _lines(blocks):
            click.echo(printable(line.decode("utf-8", "replace").rstrip("\r\n").expandtabs()))
        return
    sys.stdout.buffer.writelines(blocks)
    sys.stdout.buffer.flush()


def _lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield lines; very long ones in pieces."""
    rest = b""
    for block in blocks:
        *lines, rest = (rest + block).split(b"\n")
        yield from lines
        if len(rest) > _IN_MEMORY_BYTES:
            yield rest
            rest = b""
    if rest:
        yield rest
