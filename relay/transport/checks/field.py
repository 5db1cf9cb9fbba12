"""Write the Authentication-Results field (RFC 8601 2.2); relay.base.message reads it."""

import re
from collections.abc import Iterator, Sequence

from relay.base.message.authentication_results import AuthResult, clipped

_LINE_MAX = 78  # RFC 5322 2.1.1
_PLAIN = re.compile(r"[A-Za-z0-9!#$%&'*+/?^_`{|}~.@:-]++")
_ESCAPED = re.compile(r'["\\]')


def results_field(hostname: str, results: Sequence[AuthResult]) -> bytes:
    """Return the field with its line ends. Read again, it has the same results."""
    groups = [list(_pieces(result)) for result in results] or [["none"]]
    pieces = [f"Authentication-Results: {hostname}"]
    for group in groups:
        pieces[-1] += ";"
        pieces += group
    lines = pieces[:1]
    for piece in pieces[1:]:
        if len(lines[-1]) + len(piece) < _LINE_MAX:
            lines[-1] += f" {piece}"
        else:
            lines.append(f"\t{piece}")
    return "".join([f"{line}\r\n" for line in lines]).encode()


def _pieces(result: AuthResult) -> Iterator[str]:
    yield f"{result.method}={result.result}"
    if result.reason:
        yield f"reason={_written(result.reason, is_quoted=True)}"
    for name, value in result.properties.items():
        yield f"{name}={_written(value)}"


def _written(value: str, *, is_quoted: bool = False) -> str:
    text = clipped(value)
    if not is_quoted and _PLAIN.fullmatch(text):
        return text
    return '"' + _ESCAPED.sub(r"\\\g<0>", text) + '"'
