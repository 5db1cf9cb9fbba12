"""Apply the edits of a rule to a content: header fields and disclaimers, in their order."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from relay.message.header import ParsedContent
from relay.message.verdict import ExaminedMessage, Finding
from relay.policy.actions import DisclaimerAction, DisclaimerFallback, HeaderEdit


@dataclass(frozen=True, slots=True)
class EditedContent:
    """A content after the edits of a rule: the same object if nothing changes.

    `notes` are what could not be done; with a `refusal`, its recipients are rejected.
    """

    content: ParsedContent
    notes: tuple[Finding, ...] = ()
    refusal: str = ""


def edited(
    content: ParsedContent,
    edits: Sequence[HeaderEdit | DisclaimerAction],
    message: ExaminedMessage,
) -> EditedContent:
    """Return the content after the edits, in their order. Raises OSError."""
    notes, refusal = [], ""
    for action in edits:
        if isinstance(action, DisclaimerAction):
            done = action.edit(content)
            content = done.content
            if done.obstacle:
                notes.append(Finding("disclaimer", f"{action.fallback}: {done.obstacle}"))
                if action.fallback is DisclaimerFallback.REJECT:
                    refusal = f"A disclaimer has to be added to this message, but {done.obstacle}"
        else:
            header = action.edit(content.header, message)
            if header != content.header:
                content = dataclasses.replace(content, header=header)
    return EditedContent(content, tuple(notes), refusal)
