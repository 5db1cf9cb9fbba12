"""Whether the milters answer, and where SMTP sessions are, which they decide, for `relay check`."""

import asyncio

from relay.app.gate import why_in_process
from relay.commands.check_findings import CheckFinding, CheckResult, warning_of
from relay.gate.sandbox import available
from relay.milter.connection import fault_of_milter
from relay.settings.document import Document
from relay.settings.tree import Settings


async def check_milters(settings: Settings, place: Document) -> list[CheckFinding]:
    """Connect to each milter. One that is down is a warning: it may come back, and `when_down`
    says what becomes of mail until then.
    """
    found = list[CheckFinding]()
    faults = await asyncio.gather(*map(fault_of_milter, settings.milter))
    for number, (one, fault) in enumerate(zip(settings.milter, faults, strict=True)):
        text = f'"{one.name}" at {one.address}'
        if fault:
            down = place.fault(("milter", number, "address"), f"{text} is down: {fault}")
            found.append(warning_of("milter", down))
        else:
            found.append(CheckFinding("milter", CheckResult.OK, text))
    return found


def check_gate(settings: Settings) -> CheckFinding:
    """Return where the SMTP sessions are."""
    text = "SMTP sessions are in a process of their own"
    if reason := why_in_process(settings):
        text = f"SMTP sessions are in the process of relay serve: {reason}"
    elif missing := available():
        text = f"{text}, without what this kernel lacks of its sandbox: {' and '.join(missing)}"
    return CheckFinding("smtp_gate", CheckResult.OK, text)
