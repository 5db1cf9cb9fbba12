"""Graph's paths: a path's segments, and the patterns that they match.

Names match in any case; the prefix `microsoft.graph.` is accepted.
"""

import re

_NAMESPACE = "microsoft.graph."
_ANY_REST = "*"  # at the end of a pattern: any number of segments
_KEY = r"\((?:userPrincipalName=)?'"
_WITH_KEY = re.compile(rf"(.(?:(?!{_KEY}).)*+){_KEY}(.*)'\)", re.IGNORECASE | re.DOTALL)


def with_keys(segments: tuple[str, ...]) -> tuple[str, ...]:
    """Return a path with OData's parentheses as segments: messages('1') becomes messages/1."""
    if not any(segment.endswith("')") for segment in segments):
        return segments
    found: list[str] = []
    for segment in segments:
        if match := _WITH_KEY.fullmatch(segment):
            found += (match[1], match[2].replace("''", "'"))
        else:
            found.append(segment)
    return tuple(found)


def plain_name(segment: str) -> str:
    """Return the name of a resource, action or function as patterns have it."""
    return segment.lower().removeprefix(_NAMESPACE)


def innermost_folder(segments: tuple[str, ...]) -> tuple[str, ...]:
    """Remove the parent folders from mailFolders/{id}/childFolders/{id}: an id is enough."""
    while len(segments) > 3 and segments[0].lower() == "mailfolders":
        if segments[2].lower() != "childfolders" or _is_function(segments[3]):
            break
        segments = (segments[0], *segments[3:])
    return segments


def _is_function(segment: str) -> bool:
    """Return whether a path segment after a collection's name is no id."""
    return plain_name(segment) in ("$count", "delta", "delta()")


def pattern_of(path: str) -> tuple[str, ...]:
    """Return the pattern that is written as `path`."""
    return tuple(path.split("/")) if path else ()


def match_pattern(pattern: tuple[str, ...], segments: tuple[str, ...]) -> dict[str, str] | None:
    """Return the path parameters if `segments` match `pattern`, else None."""
    if pattern[-1:] == (_ANY_REST,):
        pattern = pattern[:-1]
        segments = segments[: len(pattern)]
    if len(pattern) != len(segments):
        return None
    parameters: dict[str, str] = {}
    for expected, segment in zip(pattern, segments, strict=True):
        if expected.startswith("{"):
            if segment.startswith("$"):  # $count and $value are no ids
                return None
            parameters[expected[1:-1]] = segment
        elif plain_name(segment) != expected:
            return None
    return parameters
