"""/compose in a development relay: write a message, reply to one, or forward it.

The message is sent by the functions of the Graph API, so limits, rights and steps are the same as
for its clients. It is sent from a mailbox, by the mailbox's account. If it is refused, nothing is
stored: the form comes back with what was typed, and the reason next to the field. Browsers do not
send files again.
"""

import base64
import re
from contextlib import suppress
from typing import Any

from msgspec import Struct
from starlette.responses import Response

from relay.formats.address_list import address_entries
from relay.front_door.api.request_parameters import single_values
from relay.front_door.graph.admission import check_pressure
from relay.front_door.graph.dependencies import GraphDependencies
from relay.front_door.graph.graph_request import GraphRequest
from relay.front_door.graph.message_parser import parse_message
from relay.front_door.graph.replies import Answer, AnswerKind, compose_answer
from relay.front_door.graph.routes import Intake
from relay.front_door.graph.send_mail import new_message, submit
from relay.front_door.graph.store_errors import api_error
from relay.front_door.http.errors import ApiError, bad_request, quoted
from relay.front_door.pages.logins import PageForm
from relay.front_door.pages.site import PageRequest
from relay.store.journeys.document import Journey
from relay.store.mailbox.errors import NoSuchItemError, StoreError

FORM_BYTES_MAX = 12_000_000  # with its attachments
_KINDS = {
    "reply": AnswerKind("reply"),
    "reply-all": AnswerKind("replyAll", to_all=True),
    "forward": AnswerKind("forward", prefix="FW"),
}
# The fields of the form have Graph's JSON names, with which the texts of errors begin.
_RECIPIENTS = ("toRecipients", "ccRecipients", "bccRecipients")
_PATH = re.compile(r"(?>message\.)?+(from|\w+Recipients|subject|body|attachments)\b[\w.\[\]]*+: ")
_RECIPIENTS_MAX = 50  # recipients whose copies are looked for: some may be deleted


class Answered(Struct, frozen=True):
    """The message that is answered.

    `graph` is the request for its copy, `begun` the answer before anything is typed.
    """

    journey: Journey
    kind: AnswerKind
    graph: GraphRequest
    begun: Answer


async def compose_page(request: PageRequest) -> Response:
    """GET /compose, with the id of a message in ?reply=, ?reply-all= or ?forward=; POST sends."""
    means = request.site.graph
    assert means is not None, "a service has no such page"
    request.principal.check_may_operate()
    answered = await _answered(request, means)
    form, status, faults = request.form, 200, dict[str, str]()
    if request.http.method == "POST":
        try:
            sent = await _send(request, means, answered)
            return request.redirect(f"messages/{sent.headers['x-relay-message-id']}")
        except ApiError as error:
            status, faults = error.status, _faults(error, form)
    return request.page(
        "compose.html",
        status=status,
        faults=faults,
        form=form,
        answered=answered,
        development=request.site.dependencies.development,
    )


async def _answered(request: PageRequest, means: GraphDependencies) -> Answered | None:
    """Return the message that the query names, None for a new message. Raises ApiError 400, 404."""
    site = request.site
    for name, key in single_values(request.http.query, _KINDS).items():
        kind, journey = _KINDS[name], await site.handlers.message(key, request.principal)
        recipients = journey.recipients[:_RECIPIENTS_MAX]
        copies = [
            (recipient.address, recipient.graph_id)
            for recipient in recipients
            if recipient.graph_id
        ]
        if journey.graph_id and journey.submission_id:
            sender = await site.dependencies.journeys.mailbox_of(journey.submission_id)
            copies.append((sender, journey.graph_id))
        for mailbox, copy_id in copies:
            graph = _as_account(request, means, mailbox, message_id=copy_id)
            with suppress(NoSuchItemError):  # the copy was deleted
                return Answered(journey, kind, graph, await compose_answer(graph, kind, {}))
        raise ApiError(404, "ErrorItemNotFound", "No mailbox of this relay has this message.")
    return None


def _as_account(
    request: PageRequest, means: GraphDependencies, address: str, *, message_id: str = ""
) -> GraphRequest:
    """Return the request of a mailbox's account. Raises ApiError for From if no account has the
    mailbox.
    """
    account = means.accounts.by_address(address)
    if account is None:
        raise bad_request(f"from: {quoted(address)} is no mailbox of this relay.")
    return GraphRequest(means, request.http, account, {"message": message_id}, caller=account)


async def _send(
    request: PageRequest, means: GraphDependencies, answered: Answered | None
) -> Response:
    """Send the message of the form; return Graph's 202. Raises ApiError if nothing was sent."""
    form = request.form
    authors = _recipients(form.text("from"))
    if len(authors) != 1:
        raise bad_request(f"from: found {quoted(form.text('from'))}, expected one address.")
    graph = _as_account(request, means, authors[0]["emailAddress"]["address"])
    check_pressure(means.pressure, Intake.MESSAGE)
    message = _message(form) | {"from": authors[0]}
    try:
        if answered is None:
            answer = Answer(parse_message(message, graph.account).properties, kept=())
        else:
            comment = message.pop("body")["content"] if form.text("format") == "quote" else ""
            parameters = {"message": message, "comment": comment}
            answer = await compose_answer(answered.graph, answered.kind, parameters)
        return await submit(graph, new_message(graph, answer.properties, kept=answer.kept))
    except StoreError as error:
        raise api_error(error, request.http) from error


def _message(form: PageForm) -> dict[str, Any]:
    """Return the message of the form as Graph's JSON."""
    kind = "html" if form.text("format") == "html" else "text"
    attachments = [
        {
            "@odata.type": "#microsoft.graph.fileAttachment",
            "name": name,
            "contentType": media_type,
            "contentBytes": base64.b64encode(content).decode(),
        }
        for name, media_type, content in form.files
    ]
    body = {"contentType": kind, "content": form.text("body").replace("\r\n", "\n")}
    people = {name: _recipients(form.text(name)) for name in _RECIPIENTS}
    return {"subject": form.text("subject"), "body": body, "attachments": attachments, **people}


def _recipients(text: str) -> list[dict[str, Any]]:
    """Return the entries of an address list as Graph's recipients, which Graph checks."""
    return [
        {"emailAddress": {"name": recipient.name, "address": recipient.address or recipient.text}}
        for recipient in address_entries(text, unqualified=True)
    ]


def _faults(error: ApiError, form: PageForm) -> dict[str, str]:
    """Return the error by the field of the form that it names, "" for none."""
    message = error.detail or error.message.replace("comment: ", "body: ")
    field = _RECIPIENTS[0] if error.code == "ErrorInvalidRecipients" else ""
    if path := _PATH.match(message):
        field, message = path[1], message[path.end() :]
    faults = {field: message[:1].upper() + message[1:].replace("Recipients", "")}
    if form.files and field != "attachments":
        faults["attachments"] = "Choose the files again: a browser does not keep them."
    return faults
