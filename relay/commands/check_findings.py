"""The results of `relay check`."""

from enum import StrEnum

from msgspec import Struct

from relay.settings.document import Fault


class CheckResult(StrEnum):
    """The result of one check."""

    OK = "ok"
    WARNING = "warning"  # the service works, but is at risk
    FAULT = "fault"  # relay serve does not start, or clients cannot use it
    FAILED = "failed"  # it starts, but does not work as configured


class CheckFinding(Struct, frozen=True):
    """One line of the output."""

    what: str
    verdict: CheckResult
    text: str


def warning_of(what: str, fault: Fault) -> CheckFinding:
    """Return the finding of what is at risk."""
    return CheckFinding(what, CheckResult.WARNING, str(fault))
