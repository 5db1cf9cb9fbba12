"""The pages that only a development relay has: the simulated internet, and the clock.

/internet shows and changes what the simulated hosts reply, and shows what they received. A change
is checked by the code that reads scenario files. If it has a fault, nothing changes, and the page
shows the fault next to what was typed.

/clock advances the clock; the header of each page has this form too. An advance continues if the
browser disconnects. The response waits for it for a few seconds, then shows that it is in progress.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl, unquote

from msgspec import Struct
from starlette.responses import Response

from relay.base.advanceable_clock import AdvanceError
from relay.base.clock import ADVANCED_S_MAX
from relay.base.phrases import words_in
from relay.base.settings.document import Fault, SettingsError
from relay.base.settings.values import WRITTEN_DURATION_EXPECTED, parse_duration
from relay.front_door.api.dependencies import DevelopmentControls
from relay.front_door.api.request_parameters import single_values
from relay.front_door.http.errors import quoted
from relay.front_door.pages.charts import duration_text
from relay.front_door.pages.logins import PageForm
from relay.front_door.pages.site import CLOCK_STEPS, NEXT_RETRY, PageRequest

VERBS = words_in("RCPT DOT MAIL DATA CONNECT BANNER EHLO STARTTLS AUTH QUIT DNS")
ACTIONS = {
    "": "sends the reply",
    "drop": "closes the connection",
    "stall": "never replies",
    "bad-certificate": "shows a bad certificate (STARTTLS)",
    "servfail": "answers SERVFAIL (DNS)",
    "nxdomain": "answers that the domain does not exist (DNS)",
}
CHANGES = ("add", "remove", "shipped", "scenario")
_FIELDS = ("domain", "verb", "recipient", "reply", "action", "delay", "times")
_FAULTS_MAX = 20
_VERSION_DIGITS = 16
_NOT_REMOVED = "The scenario was changed meanwhile; nothing was removed. This is the present one."
_NOT_REPLACED = (
    "The scenario was changed meanwhile; nothing was replaced. The text below is still yours: use "
    "it again to replace what is in force now."
)
_WAIT_S = 5.0
_FAULT_CHARACTERS_MAX = 1000
_IN_PROGRESS = (
    "The clock is being advanced already. Wait until that has ended, and advance it again then."
)
_NO_RETRY = "No message waits for another attempt."


class RefusedChange(Struct, frozen=True):
    """A change that was not made, and why. `form` has what was typed."""

    change: str
    form: PageForm
    status: int = 400
    notice: str = ""
    faults: Sequence[Fault] = ()


async def internet_page(request: PageRequest) -> Response:
    """GET /internet; with `?part=hosts` the part that changes."""
    request.principal.check_may_read()
    part = single_values(request.http.query, ("part",)).get("part")
    name = "_hosts.html" if part == "hosts" else "internet.html"
    return request.page(name, **_values(request.controls))


async def change_internet(request: PageRequest) -> Response:
    """POST /internet/{change}."""
    request.principal.check_may_operate()
    refused = await _change(request.http.segments[1], request.form, request.controls)
    if refused is None:
        return request.redirect("internet")
    values = _values(request.controls, refused)
    return request.page("internet.html", status=refused.status, **values)


async def _change(
    change: str, form: PageForm, controls: DevelopmentControls
) -> RefusedChange | None:
    """Change the scenario; return why it is not changed, or None."""
    is_present = form.text("version") == _version(controls)
    try:
        if change == "add":
            await controls.add_reply(form.text("domain").strip(), reply_of(form))
        elif change == "shipped":
            await controls.use_shipped_scenario(form.text("name"))
        elif change == "scenario" and is_present:
            await controls.use_scenario(_toml_of(form))
        elif change == "remove" and is_present:
            await controls.remove_reply(int(form.text("domain")), int(form.text("reply")))
        else:
            notice = _NOT_REPLACED if change == "scenario" else _NOT_REMOVED
            return RefusedChange(change, form, status=409, notice=notice)
    except SettingsError as error:
        return RefusedChange(change, form, faults=error.faults)
    except (IndexError, ValueError):
        return RefusedChange(change, form, status=409, notice=_NOT_REMOVED)
    return None


def _version(controls: DevelopmentControls) -> str:
    """Return the version of a scenario, which a form contains: it differs for any other
    scenario.
    """
    text = controls.scenario_toml.encode()
    return hashlib.sha256(text).hexdigest()[:_VERSION_DIGITS]


def _values(controls: DevelopmentControls, refused: RefusedChange | None = None) -> dict[str, Any]:
    change = refused.change if refused else ""
    typed = dict.fromkeys(_FIELDS, "")
    toml, by_field, faults = controls.scenario_toml, {}, []
    if refused and change == "add":
        typed = {name: refused.form.text(name) for name in _FIELDS}
        by_field = faults_by_field(refused.faults)
    elif refused:
        faults = [_fault_line(fault) for fault in refused.faults[:_FAULTS_MAX]]
        if len(refused.faults) > _FAULTS_MAX:
            faults.append(f"and {len(refused.faults) - _FAULTS_MAX} more")
    if refused and change == "scenario":
        toml = _toml_of(refused.form)
    return {
        **controls.internet_overview(),
        "notice": refused.notice if refused else "",
        "change": change,
        "typed": typed,
        "field_faults": by_field,
        "faults": faults,
        "toml": toml,
        "version": _version(controls),
        "verbs": VERBS,
        "actions": ACTIONS,
        "duration": duration_text,
    }


def reply_of(form: PageForm) -> dict[str, Any]:
    """Return the reply of a form with the keys of a scenario file; empty fields are left out."""
    table: dict[str, Any] = {
        name: value for name in _FIELDS[1:] if (value := form.text(name).strip())
    }
    if table.get("times", "").isdecimal():
        table["times"] = int(table["times"])
    return table


def faults_by_field(faults: Sequence[Fault]) -> dict[str, str]:
    """Return faults by the field of the form; "" has the faults of no field."""
    by_field: dict[str, list[str]] = {}
    for fault in faults[:_FAULTS_MAX]:
        _, is_reply, name = fault.key.rpartition("reply[0].")
        field = name if is_reply else ""
        if not is_reply and fault.key.endswith(".name"):
            field = "domain"
        by_field.setdefault(field if field in _FIELDS else "", []).append(fault.message)
    return {field: "; ".join(messages) for field, messages in by_field.items()}


def _toml_of(form: PageForm) -> str:
    """Return the text of the form; browsers send CR LF at the ends of lines."""
    return form.text("toml").replace("\r\n", "\n")


def _fault_line(fault: Fault) -> str:
    """Return a fault of the TOML text: LINE: KEY: MESSAGE."""
    return ": ".join(filter(None, [str(fault.line or ""), fault.key, fault.message]))


async def clock_page(request: PageRequest) -> Response:
    """GET /clock; with `?part=state` the part that changes. POST /clock advances the clock."""
    if request.http.method == "GET":
        part = single_values(request.http.query, ("part",)).get("part")
        name = "_clock.html" if part == "state" else "clock.html"
        return request.page(name, fault="", own="")
    request.principal.check_may_operate()
    form, controls = request.form, request.controls
    status, fault = await _advance(form, controls)
    if fault:
        return request.page("clock.html", status=status, fault=fault, own=form.text("own"))
    if controls.is_advancing:
        return request.redirect("clock")
    path, query = _place(form.text("back"))
    return request.redirect(path, **query)


async def _advance(form: PageForm, controls: DevelopmentControls) -> tuple[int, str]:
    """Advance the clock; return a status and why it is not advanced, or ""."""
    if controls.is_advancing:
        return 409, _IN_PROGRESS
    by, own = form.text("by"), form.text("own").strip()
    if by == NEXT_RETRY:
        next_s = await controls.next_retry_s()
        if next_s is None:
            return 409, _NO_RETRY
        seconds = next_s
    else:
        written = by if by in CLOCK_STEPS else own
        try:
            seconds = parse_duration(written)
        except ValueError:
            return 400, f"Found {quoted(written)}, expected {WRITTEN_DURATION_EXPECTED}."
        left_s = ADVANCED_S_MAX - controls.clock.advanced_s
        if not 0 < seconds <= left_s:
            expected = f"a time over 0 and of at most {duration_text(left_s)}"
            return 400, f"Found {quoted(written)}, expected {expected}."
    try:
        with contextlib.suppress(TimeoutError):  # the advance continues
            async with asyncio.timeout(_WAIT_S):  # real time: a browser waits
                await controls.advance_clock(seconds)
    except (AdvanceError, ValueError) as failure:
        return 503, f"The clock did not get so far: {failure}."[:_FAULT_CHARACTERS_MAX]
    return 200, ""


def _place(back: str) -> tuple[str, dict[str, str]]:
    """Return path and query of the page to go back to; by default the first page."""
    path, _, query = back.partition("?")
    segments = [unquote(segment) for segment in path.split("/")] if path else []
    if any(segment in ("", ".", "..") or "/" in segment for segment in segments):
        return "", {}
    return "/".join(segments), dict(parse_qsl(query))
