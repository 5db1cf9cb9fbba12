"""Write the Authentication-Results field (RFC 8601 2.2); relay.base.message reads it."""

import re
from collections.abc import Iterator, Sequence

from relay.base.message.authentication_results import (
    PROPERTY_CHARACTERS_MAX,
    UNABLE,
    AuthResult,
    clipped,
)
from relay.formats.headers import fold

_PLAIN = re.compile(r"[A-Za-z0-9!#$%&'*+/?^_`{|}~.@:-]++")
_ESCAPED = re.compile(r'["\\]')


def results_field(hostname: str, results: Sequence[AuthResult]) -> bytes:
    """Return the field with its line ends. Read again, it has the same results."""
    texts = [" ".join(_words(result)) for result in results]
    return fold("Authentication-Results", "; ".join((hostname, *(texts or ["none"]))))


def _words(result: AuthResult) -> Iterator[str]:
    # RFC 8601 2.7 has no other word for what could not be checked
    yield f"{result.method}={'temperror' if result.result == UNABLE else result.result}"
    pairs = [("reason", result.reason)] if result.reason else []
    for name, stated in (*pairs, *result.properties.items()):
        # ASCII, since the message need not be of SMTPUTF8
        text = clipped(stated, PROPERTY_CHARACTERS_MAX).encode("ascii", "replace").decode()
        quoted = '"' + _ESCAPED.sub(r"\\\g<0>", text) + '"'
        yield f"{name}={text if _PLAIN.fullmatch(text) else quoted}"
