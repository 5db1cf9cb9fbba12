"""Queue operations of the pages: preview a change (GET), and make it (POST).

/queue/{operation}. Both use the same selection and the checks of the API: the page runs the
operation with dry_run, and its form has the conditions, not the entries that they select. The
conditions become the parameters of GET /relay/v1/queue or the body of a queue command.

POST /messages/{id}/release of a development relay sends a copy of captured mail to the addresses
that a person types. A page first shows where it goes and to whom. /queue/release sends mail to its
own recipients if --release-allow matches them. Own recipients that a person types need a match too.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import msgspec
from msgspec import Struct
from starlette.responses import Response

from relay.base.message.lifecycle import RecipientState
from relay.base.message.nexthop import NextHop
from relay.base.phrases import counted
from relay.base.settings.values import parse_duration
from relay.front_door.api.dependencies import DevelopmentControls
from relay.front_door.api.release import (
    captured_recipients,
    check_own_recipients,
    parse_addresses,
    release_host,
)
from relay.front_door.api.request_parameters import TEXT_CONDITIONS, selector_of_query
from relay.front_door.http.errors import ApiError, bad_request, quoted
from relay.front_door.pages.site import PageRequest
from relay.store.journeys.wording import changed_line
from relay.store.spool.queue_commands import CommandResult, Operation, QueueCommand
from relay.store.spool.types import Selector

_LISTED_MAX = 20
_PARAMETERS = {
    Operation.RETRY: (),
    Operation.HOLD: ("until",),
    Operation.RELEASE: (),
    Operation.CANCEL: ("bounce", "text"),
    Operation.REROUTE: ("to",),
}
_COUNTS = ("matched", "done", "unchanged", "in_flight", "ordered")
LABELS = {
    Operation.RETRY: "Retry now",
    Operation.HOLD: "Hold",
    Operation.RELEASE: "Release",
    Operation.CANCEL: "Cancel",
    Operation.REROUTE: "Reroute",
}
EFFECTS = {
    Operation.RETRY: "The next attempt is made now.",
    Operation.HOLD: "Nothing is attempted until the mail is released.",
    Operation.RELEASE: "Held mail is attempted again.",
    Operation.CANCEL: "The recipients are not attempted any more. This cannot be undone. The "
    "sender gets a report only if you choose that.",
    Operation.REROUTE: "The mail goes to another host.",
}
_SEPARATOR = re.compile(r"[\s,;]+")
_AGE = "older_than"


class QueueSelection(Struct, frozen=True):
    """The selected entries: `ids`, or all that meet `conditions`. Without either, none."""

    ids: tuple[str, ...] = ()
    conditions: Mapping[str, str] = {}
    all: bool = False

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The fields of a form or a link with the same selection."""
        pairs = [("id", queue_id) for queue_id in self.ids] + list(self.conditions.items())
        return [*pairs, ("all", "true")] if self.all else pairs

    @property
    def words(self) -> str:
        """The selection in words."""
        if self.ids:
            return "the selected entries" if len(self.ids) > 1 else "the selected entry"
        if not self.conditions:
            return "all entries in the queue" if self.all else "nothing"
        parts = [f"{name.replace('_', ' ')} {text}" for name, text in self.conditions.items()]
        return f"all entries with {', '.join(parts)}"

    def query(self) -> dict[str, str]:
        """Return the parameters of GET /relay/v1/queue. Raises ApiError 400."""
        query = dict(self.conditions)
        if self.ids:
            query["id"] = ",".join(quote(queue_id, safe="") for queue_id in self.ids)
        if _AGE in query:
            try:
                query[_AGE] = str(parse_duration(query[_AGE]))
            except ValueError as error:
                message = f"older than: found {quoted(query[_AGE])}, expected {error}."
                raise bad_request(message) from None
        return query

    def body(self) -> dict[str, Any]:
        """Return the selector in the body of a queue command. Raises ApiError 400."""
        if not (self.ids or self.conditions or self.all):
            raise bad_request("Nothing is selected: mark entries, or choose all that match.")
        return selector_of_query(self.query()).conditions


def selection_of(pairs: Collection[tuple[str, str]]) -> QueueSelection:
    """Return the selection in the fields of a query or a form; an empty field is no condition."""
    conditions = {
        name: text.strip()
        for name, text in pairs
        if name in (*TEXT_CONDITIONS, _AGE) and text.strip()
    }
    ids = tuple(dict.fromkeys(text for name, text in pairs if name == "id" and text))
    return QueueSelection(ids, conditions, all=("all", "true") in pairs)


class OperationChoice(Struct, frozen=True):
    """An operation, and why it does not apply; "" if it does."""

    operation: Operation
    label: str
    reason: str


def _nowhere(_address: str, _sender: str) -> None:
    """Find no destination, as a RouteLookup."""


def choices_for(
    entries: Collection[Mapping[str, Any]], *, release_to: NextHop | None
) -> list[OperationChoice]:
    """Return all operations, each with the reason why it applies to none of the entries."""
    states = [RecipientState(row["state"]) for row in entries]
    choices = []
    for operation in Operation:
        if operation is Operation.REROUTE:
            reasons = [""] * len(states)
        else:
            may_leave = operation is Operation.RELEASE and release_to is not None
            to = _nowhere if may_leave else None  # only its presence counts
            command = QueueCommand(operation, Selector(all=True), "", to=to)
            reasons = [command.inapplicable_reason(state) for state in states]
        reason = reasons[0] if reasons and all(reasons) else ""
        choices.append(OperationChoice(operation, LABELS[operation], reason))
    return choices


async def queue_change(request: PageRequest) -> Response:
    """GET and POST /queue/{operation}."""
    operation = Operation(request.http.segments[1])
    request.principal.check_may_operate()
    if request.http.method == "POST":
        return await _change(request, operation)
    return await _confirmation(request, operation)


async def _confirmation(request: PageRequest, operation: Operation) -> Response:
    query = request.http.query
    selection = selection_of(query)
    inputs = _given(operation, query)
    values: dict[str, Any] = {
        "operation": str(operation),
        "label": LABELS[operation],
        "effect": EFFECTS[operation],
        "selection": selection,
        "given": inputs,
        "back": _text(query, "message"),
        "typed": "",
    }
    body = {**selection.body(), **_fields(inputs), "dry_run": True}
    answer, line, fault = None, "", ""
    if operation is not Operation.REROUTE or inputs["to"]:
        try:
            answer = await _run(request, operation, body)
            line = changed_line(operation, answer)
        except ApiError as error:
            if operation is not Operation.REROUTE or error.status != 400:
                raise
            fault = error.message
    listed: Sequence[Any] = answer["entries"][:_LISTED_MAX] if answer else ()
    is_release = operation is Operation.RELEASE and answer is not None
    development = request.site.dependencies.development
    values |= released_by_command(answer if is_release else None, development)
    return request.page(
        "queue_change.html",
        status=400 if fault else 200,
        **values,
        answer=answer,
        line=line,
        listed=listed,
        fault=fault,
    )


async def _change(request: PageRequest, operation: Operation) -> Response:
    fields = request.form.fields
    selection = selection_of(fields)
    inputs = _given(operation, fields) | {"reason": _text(fields, "reason")}
    answer = await _run(request, operation, {**selection.body(), **_fields(inputs)})
    result = {"did": str(operation)} | {name: answer[name] for name in _COUNTS}
    message = _text(fields, "message")
    if message.replace(".", "").isalnum():  # a queue id or a submission id
        return request.redirect(f"messages/{message}", **result)
    return request.redirect("queue", **(dict(selection.conditions) | result))


async def _run(
    request: PageRequest, operation: Operation, body: Mapping[str, Any]
) -> dict[str, Any]:
    """Run a command as the API does; return its answer. Raises ApiError."""
    return await request.site.handlers.run_command(
        operation, msgspec.json.encode(body), request.principal, request=request.http
    )


def result_sentence(query: Collection[tuple[str, str]]) -> str:
    """Return a sentence on the operation that led to this page; "" without one."""
    values = dict(query)
    if values.get("did") not in tuple(Operation):
        return ""
    copies = values.get("copies", "")
    if copies.isascii() and copies.isdecimal() and len(copies) < 4:
        return f"Released: a copy goes to {counted(int(copies), 'address')}."
    try:
        counts = {name: int(values.get(name, "0")) for name in _COUNTS}
    except ValueError:
        return ""
    line = changed_line(values["did"], {**counts, "dry_run": False})
    return f"{line[:1].upper()}{line[1:]}."


def _given(operation: Operation, pairs: Collection[tuple[str, str]]) -> dict[str, str]:
    return {name: _text(pairs, name) for name in _PARAMETERS[operation]}


def _fields(inputs: Mapping[str, str]) -> dict[str, str | bool]:
    """Return the fields of the body; the text of a report is left out if no report was chosen."""
    fields: dict[str, str | bool] = {name: text for name, text in inputs.items() if text}
    if "bounce" in inputs:
        fields["bounce"] = bool(inputs["bounce"])
        if not inputs["bounce"]:
            fields.pop("text", None)
    return fields


def _text(pairs: Collection[tuple[str, str]], name: str) -> str:
    return next((text.strip() for key, text in pairs if key == name), "")


async def release(request: PageRequest) -> Response:
    """Show to whom a copy goes; send it after confirmation."""
    site, form, principal = request.site, request.form, request.principal
    principal.check_may_operate()
    journey = await site.handlers.message(request.key, principal)
    entries = await site.handlers.captured_entries(journey)
    entry, development = entries[0], site.dependencies.development
    values: dict[str, Any] = {
        "journey": journey,
        "release_host": release_host(development),
        "copy_of": entry["id"],
        "own": captured_recipients(entry),
        "typed": form.text("to"),
    }
    try:
        addresses = parse_addresses([text for text in _SEPARATOR.split(form.text("to")) if text])
        check_own_recipients(entries, development, named=addresses)
    except ApiError as error:
        return request.page(
            "release.html", status=error.status, fault=error.message, addresses=(), **values
        )
    if not form.text("confirmed"):
        return request.page("release.html", fault="", addresses=addresses, **values)
    await site.handlers.release_copy(
        journey, addresses, principal, request=request.http, why=form.text("reason")
    )
    copies = len(addresses)
    return request.redirect(f"messages/{entry['id']}", did="release", copies=copies)


def released_by_command(
    answer: Mapping[str, Any] | None, development: DevelopmentControls | None
) -> dict[str, Any]:
    """Return template values for the page of a queue command.

    `leaving` are the recipients whose mail leaves this machine. `copy_of` is the captured message
    that can be copied, "" unless there is exactly one.
    """
    host = development.release_to if development is not None else None
    listed = answer["entries"] if answer is not None else ()
    captured = [row for row in listed if row["state"] == RecipientState.CAPTURED]
    leaving = [
        address
        for entry in captured
        if development is not None and entry["result"] == CommandResult.DONE
        for address in captured_recipients(entry)
        if development.may_release(address)
    ]
    messages = {row["id"] for row in captured} if host is not None else set()
    copy_of = messages.pop() if len(messages) == 1 else ""
    return {"release_host": host, "leaving": leaving, "copy_of": copy_of}
