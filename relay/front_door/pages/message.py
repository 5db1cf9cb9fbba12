"""The page of a message, /messages/{id}: its journey, and the actions for it.

Any name that `relay trace` takes is an id. Another account's message and an unknown one are the
same 404.
"""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from markupsafe import Markup
from starlette.responses import Response

from relay.base.accounts.account import Role
from relay.base.advanceable_clock import AdvanceError
from relay.base.clock import time_us_of
from relay.base.message.address import own_mailbox
from relay.base.message.lifecycle import SubmissionState
from relay.formats.read_report import DeliveryReport
from relay.front_door.api import tags as api_tags
from relay.front_door.http.errors import ApiError, bad_request, service_unavailable
from relay.front_door.pages.content import MessageHead
from relay.front_door.pages.content_pages import View
from relay.front_door.pages.journey_view import journey_view
from relay.front_door.pages.live import LIVE_PARAMETER, digest_of
from relay.front_door.pages.message_list import READ, ListView, actions, list_of, list_pane
from relay.front_door.pages.queue_change import choices_for, result_sentence
from relay.front_door.pages.site import LivePart, PageRequest, PageSite
from relay.store.journeys.details import POSTMASTER
from relay.store.journeys.document import Journey
from relay.store.journeys.message_list import position_of
from relay.store.journeys.sentences import answer
from relay.store.spool.queue_commands import Operation
from relay.store.spool.types import Selector

_ENTRIES_MAX = 100
_REPORTS_MAX = 10
_ENVID_CHARACTERS_MAX = 100
_is_message_id = re.compile(r"<[!-;=?-~]{1,250}>").fullmatch
_STILL_US = 60_000_000
# States of recipients that a box tells of above the content, and those that open the journey.
_FAILED = ("failed", "expired", "cancelled")
_LOOK = (*_FAILED, "deferred", "held", "scheduled")
_BOXES = (*_LOOK, "queued", "converting")
_BOXES_MAX = 2
_MARGIN_S = 0.01


async def message_page(request: PageRequest) -> Response:
    """GET /messages/{id}; with `live`, the stream of its journey."""
    http, site = request.http, request.site
    if ("part", "list") in http.query:
        return await list_pane(request)
    values = await _journey_values(request, request.key)
    journey = values["journey"]

    async def render() -> str:
        return "".join(_live_parts(request, await _journey_values(request, journey.key)))

    if (stream := request.live_stream(render)) is not None:
        return stream
    looks = not values["journey"].is_report and any(box.state in _LOOK for box in values["boxes"])
    default: View = "journey" if looks else "html"
    content = await site.contents.panel(http, request.visitor, journey, default=default)
    about = await _original_of(request, content.report) if content.report else ""
    came_from = list_of(request)
    newer, older = await _neighbours(request, journey, came_from)
    return request.page(
        "message.html",
        list=came_from,
        newer=newer,
        older=older,
        result=_SENT.get(dict(http.query).get("did", "")) or result_sentence(http.query),
        content=content,
        looks=looks,
        hidden=_hidden_recipients(journey, content.message.head) if content.message else (),
        unsent=_unsent(journey, content.message.head)
        if content.message and not values["view"].others
        else (),
        about=about,
        tags=(await api_tags.tags_of(site.dependencies, [journey.key])).get(journey.key, ()),
        is_own_report=_is_own_report(journey),
        live=None if _has_ended(journey, site) else _live_part(request, values),
        **values,
    )


def _hidden_recipients(journey: Journey, head: MessageHead) -> Sequence[str]:
    """Return the recipients that the header does not name, without those that replaced a
    recipient.
    """
    replaced_by = {name for recipient in journey.recipients for name in recipient.successors or ()}
    addressed = set(map(own_mailbox, head.addressed))
    return [
        recipient.address
        for recipient in journey.recipients
        if own_mailbox(recipient.address) not in addressed and recipient.address not in replaced_by
    ]


def _unsent(journey: Journey, head: MessageHead) -> Sequence[str]:
    """Return the addresses of To and Cc to which the message was not sent."""
    sent = {own_mailbox(recipient.address) for recipient in journey.recipients}
    return [
        address
        for address in dict.fromkeys(head.addressed)
        if address and own_mailbox(address) not in sent
    ]


async def _neighbours(request: PageRequest, journey: Journey, view: ListView) -> tuple[str, str]:
    """Return the names of the previous and the next message in a list, "" for none."""
    return await request.site.dependencies.journeys.neighbours(
        request.site.handlers.with_reader(view.search, request.principal),
        position_of(journey.id or "", journey.submission_id or ""),
        account=request.principal.account,
        begin=view.begin,
    )


async def _actions(request: PageRequest, name: str) -> list[tuple[str, str]]:
    """Return the actions for the copies of a message, each with the words of its button."""
    site, principal = request.site, request.principal
    if not site.handlers.is_development:
        rows = await site.dependencies.journeys.rows([name], account=principal.account)
        facts = await site.handlers.row_facts(rows, principal)
        if not any(copy_facts.is_received for copy_facts in facts.values()):
            return []
    return [
        action for action in actions(site) if action[0] != READ or not site.handlers.is_development
    ]


def _has_ended(journey: Journey, site: PageSite) -> bool:
    """Return whether a journey ended so long ago that no further event is expected."""
    last = max((step.at for step in journey.steps), default="")
    ended_us = site.dependencies.clock.time_us() - _STILL_US
    return journey.is_final and last != "" and time_us_of(last) < ended_us


def _live_parts(request: PageRequest, values: Mapping[str, Any]) -> list[str]:
    """Return the parts that the stream replaces: boxes, menu, strip of steps, and journey."""
    parts = ("_answer.html", "_answers.html", "_more.html", "_strip.html", "_journey.html")
    return [request.shared_part(part, **values) for part in parts]


def _live_part(request: PageRequest, values: Mapping[str, Any]) -> LivePart:
    """Return the journey and its stream, by the message's name: "last" soon is another message."""
    parts = _live_parts(request, values)
    url = f"{values['journey'].key}?{LIVE_PARAMETER}={digest_of(''.join(parts))}"
    return LivePart(Markup(parts[-1]), url)  # noqa: S704 - a template has rendered it


async def _journey_values(request: PageRequest, key: str) -> dict[str, Any]:
    """Return what the template of a journey needs. Raises ApiError 404."""
    site = request.site
    journey = await site.handlers.message(key, request.principal)
    entries = await _entries_of(request, journey)
    now_us = site.dependencies.clock.time_us()
    reports = await _reports_of(request, journey)
    view = journey_view(journey, entries)
    may_operate = request.principal.role is Role.OPERATE
    due = min(
        (
            at
            for recipient in journey.recipients
            if (at := recipient.next_attempt) and time_us_of(at) > now_us
        ),
        default="",
    )
    controls = site.dependencies.development
    sentences = answer(journey, now_us=now_us, reports=reports)
    boxes = [told for told in sentences if told.state in _BOXES][:_BOXES_MAX]
    untold = sum(recipient.state in _BOXES for recipient in journey.shown_recipients)
    has_copies = journey.submission_id or any(
        recipient.graph_id for recipient in journey.recipients
    )
    return {
        "actions": await _actions(request, journey.key),
        "answer": sentences,
        "boxes": boxes,
        "untold": max(0, untold - sum(box.count for box in boxes)),
        "failed": _FAILED,
        "journey": journey,
        "view": view,
        "operations": choices_for(entries, release_to=controls.release_to if controls else None)
        if may_operate and entries
        else [],
        "may_advance": bool(controls and may_operate and due),
        "may_change": may_operate and journey.state == SubmissionState.SCHEDULED,
        "may_answer": site.graph and may_operate and has_copies,
        "due": due,
    }


async def _entries_of(request: PageRequest, journey: Journey) -> Sequence[Mapping[str, Any]]:
    """Return the entries of a message in the queue; an account sees only its recipients."""
    if not journey.id:
        return []
    listed = await request.site.dependencies.queue_admin.list(
        Selector(ids=(journey.id,)), limit=_ENTRIES_MAX
    )
    if request.principal.account is None:
        return listed
    addresses = {recipient.address for recipient in journey.recipients}
    entries = []
    for entry in listed:
        recipients = entry["recipients"]
        own = [recipient for recipient in recipients if recipient["address"] in addresses]
        if own:
            entries.append({**entry, "recipients": own})
    return entries


async def _reports_of(request: PageRequest, journey: Journey) -> dict[str, Journey]:
    """Return the journeys of the newest reports on a message that the visitor may see."""
    reports: dict[str, Journey] = {}
    for name in journey.reports[-_REPORTS_MAX:]:
        report = await _journey(request, name)
        if report is not None:
            reports[name] = report
    return reports


async def _journey(request: PageRequest, name: str) -> Journey | None:
    """Return the journey of a message, None if the visitor may not see it."""
    journeys = request.site.dependencies.journeys
    return await journeys.journey(name, account=request.principal.account)


def _is_own_report(journey: Journey) -> bool:
    """Return whether the spool knows that this relay wrote the message: anyone can write a report.

    Mail to the postmaster may be a dead letter, which anyone may have written.
    """
    return journey.is_report and all(
        recipient.address != POSTMASTER for recipient in journey.recipients
    )


async def _original_of(request: PageRequest, report: DeliveryReport) -> str:
    """Return the message that a report is about, "" if the visitor may not see it.

    Relay sends a submission id as the ENVID, which a report repeats if its host knows ENVID.
    """
    envid, message_id = report.envelope_id, report.message_id
    is_submission = 0 < len(envid) <= _ENVID_CHARACTERS_MAX and "@" not in envid and envid != "last"
    names = [envid] if is_submission else []
    names += [message_id] if _is_message_id(message_id) else []
    for name in names:
        if original := await _journey(request, name):
            return original.key
    return ""


async def advance_to_next(request: PageRequest) -> Response:
    """POST /messages/{id}/advance in a development relay: to the time of the next event."""
    request.principal.check_may_operate()
    values = await _journey_values(request, request.key)
    dependencies = request.site.dependencies
    controls = dependencies.development
    if controls is None or not values["due"]:
        raise bad_request("Nothing of this message waits for a time: the clock stays as it is.")
    left_s = (time_us_of(values["due"]) - dependencies.clock.time_us()) / 1e6
    try:
        await controls.advance_clock(max(left_s, 0.0) + _MARGIN_S)
    except ValueError as error:
        raise bad_request(f"The clock: {error}.") from None
    except AdvanceError as error:
        raise service_unavailable(str(error), retry_after_s=5) from error
    return request.redirect(f"messages/{values['journey'].key}")


async def set_tags(request: PageRequest) -> Response:
    """POST /messages/{id}/tags in a development relay: replace the tags by `tags`."""
    journey = await request.site.handlers.message(request.key, request.principal)
    tags = {journey.key: request.form.text("tags")}
    await api_tags.set_tags(request.site.dependencies, tags, request.principal)
    return request.redirect(f"messages/{journey.key}", list=request.form.text("list") or None)


_SENT_NOW, _CANCELLED = "sent-now", "send-cancelled"
_SENT = {
    _SENT_NOW: "It is sent now.",
    _CANCELLED: "The send is cancelled. The draft stays in Drafts.",
}


async def change_scheduled(request: PageRequest) -> Response:
    """POST /messages/{id}/send-now: send a scheduled message now; or cancel-send: cancel it and
    keep the draft.
    """
    did = _CANCELLED if request.http.segments[2] == "cancel-send" else _SENT_NOW
    request.principal.check_may_operate()
    journey = await request.site.handlers.message(request.key, request.principal)
    submissions, name = request.site.dependencies.submissions, journey.submission_id or ""
    cancel = partial(submissions.change_waiting, operation=Operation.CANCEL)
    change = cancel if did == _CANCELLED else submissions.send_scheduled_now
    if not await change(name, who=request.principal.name):
        message = "It does not wait for its time any more: it is held, being sent, or cancelled."
        raise ApiError(409, "Conflict", message)
    request.principal.log("queue command", operation=did, done=1, ids=name)
    return request.redirect(f"messages/{journey.key}", did=did)
