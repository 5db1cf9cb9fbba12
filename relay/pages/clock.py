"""The page of the clock of a development relay, and the forms that advance it.

Such a form is also in the header of each page. An advance goes on when the browser is gone. The
response waits a few seconds for it, and then shows that it is in progress.
"""

import asyncio
from urllib.parse import parse_qsl, unquote

from starlette.responses import Response

from relay.api.dependencies import DevelopmentControls
from relay.api.request_parameters import require_method, single_values
from relay.base.advanceable_clock import AdvanceError
from relay.base.clock import ADVANCED_S_MAX
from relay.http.errors import quoted
from relay.pages.charts import duration_text
from relay.pages.logins import PageForm
from relay.pages.site import CLOCK_STEPS, NEXT_RETRY, PageRequest
from relay.settings.values import WRITTEN_DURATION_EXPECTED, parse_duration

_WAIT_S = 5.0
_FAULT_CHARACTERS_MAX = 1000
_IN_PROGRESS = (
    "The clock is being advanced already. Wait until that has ended, and advance it again then."
)
_NO_RETRY = "No message waits for another attempt."


class ClockPage:
    """GET /clock, with `?part=state` what changes of it, and POST /clock."""

    def __init__(self, controls: DevelopmentControls) -> None:
        self._controls = controls
        self._advances: set[asyncio.Task[None]] = set()

    async def respond(self, request: PageRequest) -> Response:
        """Return the page, or advance the clock. Raises ApiError."""
        require_method(request.http, "GET", "POST")
        if request.http.method == "GET":
            part = single_values(request.http.query, ("part",)).get("part")
            name = "_clock.html" if part == "state" else "clock.html"
            return request.page(name, fault="", own="")
        request.principal.check_may_operate()
        form = request.form
        status, fault = await self._advance(form)
        if fault:
            return request.page("clock.html", status=status, fault=fault, own=form.text("own"))
        if self._controls.is_advancing:
            return request.redirect("clock")
        path, query = _place(form.text("back"))
        return request.redirect(path, **query)

    async def _advance(self, form: PageForm) -> tuple[int, str]:
        """Advance the clock; return a status and why it is not advanced, "" if it is."""
        controls = self._controls
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
                most = duration_text(left_s)
                return (
                    400,
                    f"Found {quoted(written)}, expected a time over 0 and of at most {most}.",
                )
        return await self._advance_by(seconds)

    async def _advance_by(self, seconds: float) -> tuple[int, str]:
        controls = self._controls
        task = asyncio.ensure_future(controls.advance_clock(seconds))
        self._advances.add(task)
        task.add_done_callback(self._ended)
        done, _ = await asyncio.wait({task}, timeout=_WAIT_S)  # real time: a browser waits
        try:
            if done:
                task.result()
        except (AdvanceError, ValueError) as failure:
            return 503, f"The clock did not get so far: {failure}."[:_FAULT_CHARACTERS_MAX]
        return 200, ""

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._advances.discard(task)
        if not task.cancelled():
            task.exception()  # the page says it when it is read next


def _place(back: str) -> tuple[str, dict[str, str]]:
    """Return the page to go back to, its path and query; the first page if there is none."""
    path, _, query = back.partition("?")
    segments = [unquote(one) for one in path.split("/")] if path else []
    if any(one in ("", ".", "..") or "/" in one for one in segments):
        return "", {}
    return "/".join(segments), dict(parse_qsl(query))
