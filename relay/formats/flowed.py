"""Join the lines of a text/plain with format=flowed and DelSp=yes, as mail programs show it.

Without DelSp the text is the same except for its line ends, and is not changed. Time is linear.
RFC 3676 4.2 (DelSp), 4.3 (signature), 4.4 (stuffing), 4.5 (quote depth).
"""

import re
from io import StringIO

from relay.formats.content_fields import content_field

_LINE = re.compile(r"(>*+) ?([^\r\n]*+)(\r\n|\r|\n|\Z)")
_LINE_ENDS_MAX = 400_000  # CR and LF; a text with more takes seconds, and is not changed
_SIGNATURE = "-- "


def unflowed(text: str, content_type: str) -> str:
    """Return a text with its lines joined if the value of its Content-Type asks for it."""
    field = content_field(content_type)
    asked = (field.value, field.raw("format").lower(), field.raw("delsp").lower())
    line_ends = text.count("\n") + text.count("\r")
    if asked != ("text/plain", "flowed", "yes") or line_ends > _LINE_ENDS_MAX:
        return text
    written = StringIO()
    depth, line_end = -1, ""  # the quote depth of a line that continues in the next one, else -1
    for match in _LINE.finditer(text):
        quotes, line, following = match.groups()
        is_flowed = line.endswith(" ") and line != _SIGNATURE
        if len(quotes) != depth or line == _SIGNATURE:
            written.write(f"{line_end}{quotes} " if quotes else line_end)
        written.write(line[:-1] if is_flowed else line)
        depth, line_end = len(quotes) if is_flowed else -1, following
    return written.getvalue() + line_end
