"""A line of the submission log.

The facts of a submission are in its line of step 1, by which the others are found, and in that of
its withdrawal. A crash or a full disk may have damaged a line.
"""

from typing import Annotated, Any

import msgspec

from relay.journeys.events import Step


class LogLine(msgspec.Struct, frozen=True):
    """An event of a submission; a remark about it, whose step is 0; or that it was withdrawn."""

    submission_id: str  # of the submission
    step: Annotated[int, msgspec.Meta(ge=0, le=int(max(Step)))]
    at_us: int = 0  # wall time
    detail: dict[str, Any] = {}  # of the event, or the remark
    queue_id: str = ""  # in the line of step 4
    owner: str = ""  # `account`, in lines without the facts
    withdrawn: bool = False  # it was rejected, and has no journey
    graph_id: str = ""  # these are the facts
    account: str = ""
    sender: str = ""
    message_id: str = ""
    subject: str = ""
    recipients: tuple[str, ...] = ()

    @property
    def has_facts(self) -> bool:
        """Whether the facts are in this line."""
        return self.step == Step.CREATED or self.withdrawn


_decoder = msgspec.json.Decoder(LogLine)


def parse_line(line: bytes) -> LogLine | None:
    """Return what a line says, None for a damaged one."""
    try:
        return _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
