"""One content as conditions see it: each fact is found when first asked for, and once.

On the path: the engine makes one per content; conditions read it.
Holds: bounded work per fact; a damaged message has facts as well.
Fails: TooManyPartsError for attachment names; OSError for a body that cannot be read.
Standards: RFC 5322 3.6, RFC 2047.
"""

from relay.message.content import Content, in_sight
from relay.message.verdict import Subject
from relay.mime import headers
from relay.mime.encodedwords import decode_words
from relay.policy.attachments import attachment_names

FIELDS_MAX = 100  # of one name; further ones are not looked at


class View:
    """A content with its envelope: `mail` is how it came in, `content` its present form."""

    def __init__(self, mail: Subject, content: Content) -> None:
        self.mail = mail
        self.content = content
        self._in_sight = in_sight(content)
        # Not cached_property: before Python 3.12 each first look takes a lock.
        self._subject: str | None = None
        self._attachment_names: tuple[str, ...] | None = None
        self._lowered_header: bytes | None = None
        self._values: dict[str, tuple[str, ...]] = {}

    @property
    def subject(self) -> str:
        """The Subject as people read it."""
        if self._subject is None:
            self._subject = headers.decoded(self._in_sight, "Subject")
        return self._subject

    @property
    def attachment_names(self) -> tuple[str, ...]:
        """The normalised names of all attachments."""
        if self._attachment_names is None:
            self._attachment_names = attachment_names(self.content)
        return self._attachment_names

    def header(self, name: str) -> tuple[str, ...]:
        """Return the values of all fields called `name` (lower case), unfolded and decoded."""
        found = self._values.get(name)
        if found is None:
            found = self._values[name] = self._find(name.encode())
        return found

    def _find(self, name: bytes) -> tuple[str, ...]:
        content = self._in_sight
        if self._lowered_header is None:
            self._lowered_header = content[: headers.split(content)].lower()
        if name not in self._lowered_header:
            return ()
        return tuple(
            decode_words(content[field.value_start : field.end].replace(b"\r\n", b"").strip(b" \t"))
            for field in headers.fields(content)
            if field.name == name
        )[:FIELDS_MAX]
