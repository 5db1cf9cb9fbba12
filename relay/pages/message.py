"""The page of a message, /messages/{id}: its journey, and what can be done about it.

Any name that `relay trace` takes is an id. Another account's message and an unknown one are the
same 404.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup
from starlette.responses import Response

from relay.accounts.account import Role
from relay.advanceable_clock import AdvanceError
from relay.api.request_parameters import require_method
from relay.clock import time_us_of
from relay.http.errors import ApiError, service_unavailable
from relay.http.http_request import HttpRequest
from relay.journeys.document import Journey
from relay.journeys.events import Step
from relay.journeys.message_list import position_of
from relay.journeys.sentences import answer
from relay.message.lifecycle import SubmissionState
from relay.mime.read_report import DeliveryReport
from relay.pages.access import Visitor
from relay.pages.forms import read_form
from relay.pages.journey_view import journey_view
from relay.pages.live import LIVE_PARAMETER, digest_of
from relay.pages.message_list import READ, ListView, actions, list_of
from relay.pages.queue_change import choices_for, result_sentence
from relay.pages.site import LivePart, PageSite
from relay.reports.bounces import POSTMASTER
from relay.spool.types import Selector

_ENTRIES_MAX = 100
_REPORTS_MAX = 10
_ENVID_CHARACTERS_MAX = 100
_is_message_id = re.compile(r"<[!-;=?-~]{1,250}>").fullmatch
_STILL_US = 60_000_000
_MARGIN_S = 0.01


async def message_page(
    key: str, request: HttpRequest, visitor: Visitor, *, site: PageSite
) -> Response:
    """GET /messages/{id}; with `live`, the stream of its journey."""
    require_method(request, "GET")
    values = await journey_values(key, visitor, site)
    name = values["key"]

    async def render() -> str:
        return "".join(_live_parts(request, await journey_values(name, visitor, site), site))

    if (stream := site.live_stream(request, visitor, render)) is not None:
        return stream
    content = await site.contents.panel(request, visitor, values["journey"])
    about = await _original_of(content.report, visitor, site) if content.report else ""
    came_from = list_of(request.query)
    newer, older = await _neighbours(values["journey"], visitor, site, view=came_from)
    return site.page(
        request,
        visitor,
        "message.html",
        list=came_from,
        newer=newer,
        older=older,
        actions=await _actions(name, visitor, site),
        result=_SENT.get(dict(request.query).get("did", "")) or result_sentence(request.query),
        content=content,
        about=about,
        is_own_report=_is_own_report(values["journey"]),
        live=None if _has_ended(values["journey"], site) else _live_part(request, values, site),
        **values,
    )


async def _neighbours(
    journey: Journey, visitor: Visitor, site: PageSite, *, view: ListView
) -> tuple[str, str]:
    """Return the names of the messages before and behind this one in a list, "" for none."""
    return await site.dependencies.journeys.neighbours(
        site.handlers.with_reader(view.wanted, visitor.principal),
        position_of(journey.id or "", journey.submission_id or ""),
        account=visitor.principal.account,
        begin=view.begin,
    )


async def _actions(name: str, visitor: Visitor, site: PageSite) -> list[tuple[str, str]]:
    """Return what can be done with the copies of a message, and the words of its button."""
    if not site.handlers.is_development:
        rows = await site.dependencies.journeys.rows([name], account=visitor.principal.account)
        facts = await site.handlers.row_facts(rows, visitor.principal)
        if not any(one.is_received for one in facts.values()):
            return []
    return [one for one in actions(site) if one[0] != READ or not site.handlers.is_development]


def _has_ended(journey: Journey, site: PageSite) -> bool:
    """Return whether a journey is over for so long that nothing more is to be expected."""
    last = max((step.at for step in journey.steps), default="")
    ended_us = site.dependencies.clock.time_us() - _STILL_US
    return journey.is_final and last != "" and time_us_of(last) < ended_us


def _live_parts(request: HttpRequest, values: Mapping[str, Any], site: PageSite) -> list[str]:
    """Return the answer, which the stream puts into its place, and the journey."""
    return [site.render(request, None, one, **values) for one in ("_answer.html", "_journey.html")]


def _live_part(request: HttpRequest, values: Mapping[str, Any], site: PageSite) -> LivePart:
    """Return the journey and its stream, by the message's own name: "last" is soon another one."""
    parts = _live_parts(request, values, site)
    url = f"{values['key']}?{LIVE_PARAMETER}={digest_of(''.join(parts))}"
    return LivePart(Markup(parts[1]), url)  # noqa: S704 - a template has rendered it


async def journey_values(key: str, visitor: Visitor, site: PageSite) -> dict[str, Any]:
    """Return what the template of a journey needs. Raises ApiError 404."""
    journey = await site.handlers.message(key, visitor.principal)
    entries = await _entries_of(journey, visitor, site)
    now_us = site.dependencies.clock.time_us()
    reports = await _reports_of(journey, visitor, site)
    view = journey_view(journey, entries, now_us=now_us, reports=reports)
    may_operate = visitor.principal.role is Role.OPERATE
    due = min((one.at for one in view.next if one.at), default="")
    controls = site.dependencies.development
    return {
        "answer": answer(journey, now_us=now_us, reports=reports),
        "journey": journey,
        "view": view,
        "key": journey.key,
        "operations": choices_for(entries, release_to=controls.release_to if controls else None)
        if may_operate and entries
        else [],
        "may_advance": bool(controls and may_operate and due),
        "may_change": may_operate and journey.state == SubmissionState.SCHEDULED,
        "due": due,
    }


async def _entries_of(
    journey: Journey, visitor: Visitor, site: PageSite
) -> Sequence[Mapping[str, Any]]:
    """Return the entries of a message in the queue; an account sees those with its recipients."""
    if not journey.id:
        return []
    listed = await site.dependencies.queue_admin.list(
        Selector(ids=(journey.id,)), limit=_ENTRIES_MAX
    )
    if visitor.principal.account is None:
        return listed
    shown = {one.address for one in journey.recipients}
    return [
        {**entry, "recipients": [one for one in entry["recipients"] if one["address"] in shown]}
        for entry in listed
        if any(one["address"] in shown for one in entry["recipients"])
    ]


async def _reports_of(journey: Journey, visitor: Visitor, site: PageSite) -> dict[str, Journey]:
    """Return the journeys of the newest reports on a message, as far as the visitor sees them."""
    names = [one.detail.get("report_id") for one in journey.steps if one.step == 7]
    found: dict[str, Journey] = {}
    for name in list(filter(None, names))[-_REPORTS_MAX:]:
        report = await site.dependencies.journeys.journey(name, account=visitor.principal.account)
        if report is not None:
            found[name] = report
    return found


def _is_own_report(journey: Journey) -> bool:
    """Return whether the spool knows that this relay wrote the message: anybody can write a report.

    A dead letter may be a message of anybody's; it goes to the postmaster.
    """
    is_about = any(one.step == Step.POLICY_AND_ROUTING and "about" in one.detail
                   for one in journey.steps)  # fmt: skip
    return is_about and all(one.address != POSTMASTER for one in journey.recipients)


async def _original_of(report: DeliveryReport, visitor: Visitor, site: PageSite) -> str:
    """Return the message that a report is about, "" if it is none that the visitor may see.

    Relay sends a submission id as the ENVID, which a report repeats if its host knows ENVID.
    """
    envid, message_id = report.envelope_id, report.message_id
    is_submission = 0 < len(envid) <= _ENVID_CHARACTERS_MAX and "@" not in envid and envid != "last"
    names = [envid] if is_submission else []
    names += [message_id] if _is_message_id(message_id) else []
    for name in names:
        found = await site.dependencies.journeys.journey(name, account=visitor.principal.account)
        if found:
            return found.key
    return ""


async def advance_to_next(
    key: str, request: HttpRequest, visitor: Visitor, *, site: PageSite
) -> Response:
    """POST /messages/{id}/advance in a development relay: to the time of what happens next."""
    require_method(request, "POST")
    await read_form(request, visitor.csrf)
    visitor.principal.check_may_operate()
    values = await journey_values(key, visitor, site)
    controls = site.dependencies.development
    if controls is None or not values["due"]:
        message = "Nothing of this message waits for a time: the clock stays as it is."
        raise ApiError(400, "BadRequest", message)
    left_s = (time_us_of(values["due"]) - site.dependencies.clock.time_us()) / 1e6
    try:
        await controls.advance_clock(max(left_s, 0.0) + _MARGIN_S)
    except ValueError as error:
        raise ApiError(400, "BadRequest", f"The clock: {error}.") from None
    except AdvanceError as error:
        raise service_unavailable(str(error), retry_after_s=5) from error
    return site.redirect(request, f"messages/{values['key']}")


_SENT_NOW, _CANCELLED = "sent-now", "send-cancelled"
_SENT = {
    _SENT_NOW: "It is sent now.",
    _CANCELLED: "The send is cancelled. The draft stays in Drafts.",
}


async def change_scheduled(
    key: str, request: HttpRequest, visitor: Visitor, *, site: PageSite
) -> Response:
    """POST /messages/{id}/send-now: before the time that the sender chose; or cancel-send: the
    draft of a scheduled send stays.
    """
    did = _CANCELLED if request.segments[2] == "cancel-send" else _SENT_NOW
    require_method(request, "POST")
    await read_form(request, visitor.csrf)
    visitor.principal.check_may_operate()
    journey = await site.handlers.message(key, visitor.principal)
    submissions, name = site.dependencies.submissions, journey.submission_id or ""
    is_cancelled = did == _CANCELLED
    change = submissions.cancel_scheduled if is_cancelled else submissions.send_scheduled_now
    if not await change(name, who=visitor.principal.name):
        message = "It does not wait for its time any more: it is being sent, or was cancelled."
        raise ApiError(409, "Conflict", message)
    return site.redirect(request, f"messages/{journey.key}", did=did)
