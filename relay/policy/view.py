"""One content as conditions see it: each fact is found when first asked for, and once.

On the path: the engine makes one per content; conditions read it.
Holds: bounded work per fact; a damaged message has facts as well.
Fails: TooManyPartsError for attachment names.
Standards: RFC 5322 3.6, RFC 2047.
"""

from functools import cached_property

from relay.message import headers
from relay.message.encodedwords import decode_words
from relay.message.verdict import Subject
from relay.policy.attachments import attachment_names

FIELDS_MAX = 100  # of one name; further ones are not looked at


class View:
    """A content with its envelope: `mail` is how it came in, `content` its present form."""

    def __init__(self, mail: Subject, content: bytes) -> None:
        self.mail = mail
        self.content = content
        self._values: dict[str, tuple[str, ...]] = {}

    @cached_property
    def subject(self) -> str:
        """The Subject as people read it."""
        return headers.decoded(self.content, "Subject")

    @cached_property
    def attachment_names(self) -> tuple[str, ...]:
        """The normalised names of all attachments."""
        return attachment_names(self.content)

    def header(self, name: str) -> tuple[str, ...]:
        """Return the values of all fields called `name` (lower case), unfolded and decoded."""
        found = self._values.get(name)
        if found is None:
            found = self._values[name] = self._find(name.encode())
        return found

    @cached_property
    def _lowered_header(self) -> bytes:
        return self.content[: headers.split(self.content)].lower()

    def _find(self, name: bytes) -> tuple[str, ...]:
        if name not in self._lowered_header:
            return ()
        return tuple(
            decode_words(
                self.content[field.value_start : field.end].replace(b"\r\n", b"").strip(b" \t")
            )
            for field in headers.fields(self.content)
            if field.name == name
        )[:FIELDS_MAX]
