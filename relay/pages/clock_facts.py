"""What the header of each page of a development relay says about its clock."""

from collections.abc import Mapping
from typing import Any

from relay.api.dependencies import DevelopmentControls
from relay.base.clock import rfc3339
from relay.pages.charts import duration_text

CLOCK_STEPS = {"10m": "10 min", "1h": "1 h", "1d": "1 d"}
NEXT_RETRY = "next"


def clock_facts(controls: DevelopmentControls) -> dict[str, Any]:
    """Return `now`, `ahead` ("" if it is not), `is_advancing`, `last` ("" for none) and `steps`."""
    clock, last = controls.clock, controls.last_advance
    return {
        "now": rfc3339(clock.time_us()),
        "ahead": duration_text(clock.advanced_s) if clock.advanced_s else "",
        "is_advancing": controls.is_advancing,
        "last": _sentence(last) if last else "",
        "steps": CLOCK_STEPS,
    }


def _sentence(last: Mapping[str, Any]) -> str:
    """Return what an advance did: Advanced by 1 h: 3 attempts, 1 report."""
    attempts, reports = (
        f"{last[key]} {key if last[key] != 1 else key[:-1]}" for key in ("attempts", "reports")
    )
    done = f"{attempts}, {reports}"
    if not last["error"]:
        return f"Advanced by {duration_text(last['seconds'])}: {done}."
    reached = duration_text(last["seconds"]) if last["seconds"] > 0 else "nothing"
    return f"Advanced by {reached}: {done}. It stopped early: {last['error']}."
