"""What the conditions of mail-flow rules have in common: what they read, and what they answer.

MessageView reads each fact of a message once, when a condition first needs it.
"""

from collections.abc import Iterable, Sequence

from msgspec import Struct

from relay.message.header import ParsedContent
from relay.message.verdict import ExaminedMessage
from relay.mime import headers
from relay.mime.encoded_words import decode_words
from relay.policy.attachments import AttachedFile, attachments
from relay.policy.body_text import BodyText, body_text
from relay.policy.globs import FieldGlobs
from relay.policy.message_parts import MessagePart, may_have_attachments, message_parts

FIELDS_MAX = 100  # of one name; further ones are ignored


class MessageView:
    """A message for conditions: `message` as received, `content` after earlier rules."""

    def __init__(self, message: ExaminedMessage, content: ParsedContent) -> None:
        self.message = message
        self.content = content
        self.size = content.size
        # Not cached_property, which takes a lock before Python 3.12.
        self._subject: str | None = None
        self._parts: tuple[MessagePart, ...] | None = None
        self._attachment_names: tuple[str, ...] | None = None
        self._attachments: tuple[AttachedFile, ...] | None = None
        self._body: BodyText | None = None
        self._values: dict[str, tuple[str, ...]] = {}
        self.known: dict[int, bool] = {}  # results, by the number of the condition

    @property
    def subject(self) -> str:
        """The decoded Subject."""
        if self._subject is None:
            self._subject = headers.decoded(self.content.header, "Subject")
        return self._subject

    @property
    def parts(self) -> tuple[MessagePart, ...]:
        """All parts. Raises TooManyPartsError, OSError, as do those that follow."""
        if self._parts is None:
            self._parts = message_parts(self.content)
        return self._parts

    @property
    def attachment_names(self) -> tuple[str, ...]:
        """The normalised names of all attachments, each once."""
        if self._attachment_names is None:
            parts = self.parts if may_have_attachments(self.content) else ()
            self._attachment_names = tuple(
                dict.fromkeys(name for part in parts for name in part.names)
            )
        return self._attachment_names

    @property
    def attachments(self) -> tuple[AttachedFile, ...]:
        """All attachments, with the types of their contents."""
        if self._attachments is None:
            parts = self.parts if may_have_attachments(self.content) else ()
            self._attachments = attachments(self.content, parts)
        return self._attachments

    @property
    def body(self) -> BodyText:
        """The text of the body."""
        if self._body is None:
            self._body = BodyText(body_text(self.content, self.parts))
        return self._body

    def header(self, name: str) -> tuple[str, ...]:
        """Return the values of all fields called `name`, unfolded and decoded."""
        found = self._values.get(name)
        if found is None:
            values = self.content.header.values(name)[:FIELDS_MAX]
            found = self._values[name] = tuple(map(decode_words, values))
        return found

    def field_names(self) -> Iterable[str]:
        """Return the names of the header fields, in lower case, each once."""
        return self.content.header.names()

    def values_of(self, field: str) -> Sequence[str]:
        """Return the values of a field in FieldGlobs that is not in the header."""
        match field:
            case "sender":
                return (self.message.reverse_path or "<>",)
            case "recipient":
                return self.message.recipients
            case "attachment":
                return ("",) if may_have_attachments(self.content) else ()
            case _:
                return (self.subject,)


class BaseCondition(Struct, frozen=True):
    """What all conditions have in common."""

    @property
    def is_deep(self) -> bool:
        """Whether it may take long, so that it is asked last, and in a thread."""
        return False

    def needs_thread(self, _: MessageView) -> bool:
        """Return whether it takes long for this content."""
        return self.is_deep

    def terms(self) -> Sequence[FieldGlobs]:
        """Return globs of which one matches wherever the condition does; () if there are none."""
        return ()
