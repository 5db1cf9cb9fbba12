"""Globs, as the conditions of mail-flow rules use them.

They are matched in linear time, without regard to case; only * and ? are special, so "[EXTERNAL]*"
is literal.
"""

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

from msgspec import Struct

from relay.transport.policy.folding import without_case

GLOB_CHARACTERS_MAX = 500
VALUE_CHARACTERS_MAX = 2000  # the rest of a longer value is ignored


class Globs(Struct, frozen=True):
    """Globs, any of which may match; common kinds need no regular expression."""

    whole: frozenset[str] = frozenset()
    domains: frozenset[str] = frozenset()  # "*@text"
    beginnings: tuple[str, ...] = ()  # "text*"
    endings: tuple[str, ...] = ()  # "*text"
    contained: tuple[str, ...] = ()  # "*text*"
    others: tuple[re.Pattern[str], ...] = ()

    @classmethod
    def of(cls, patterns: Iterable[str]) -> Self:
        """Compile `patterns`. Raises ValueError that says what was expected."""
        whole: set[str] = set()
        by_ends: dict[tuple[bool, bool], list[str]] = {}  # whether "*" is at the end, at the begin
        others = []
        for pattern in patterns:
            if not 0 < len(pattern) <= GLOB_CHARACTERS_MAX:
                raise ValueError(f"globs of 1 to {GLOB_CHARACTERS_MAX} characters")
            folded = without_case(pattern)
            ends, begins = folded.endswith("*"), len(folded) > 1 and folded.startswith("*")
            inner = folded[begins : len(folded) - ends]
            if "*" in inner or "?" in inner:
                others.append(re.compile(fnmatch.translate(folded.replace("[", "[[]"))))
            elif ends or begins:
                by_ends.setdefault((ends, begins), []).append(inner)
            else:
                whole.add(folded)
        return cls(
            whole=frozenset(whole),
            beginnings=tuple(by_ends.get((True, False), ())),
            endings=tuple(by_ends.get((False, True), ())),
            contained=tuple(by_ends.get((True, True), ())),
            others=tuple(others),
        )

    def __or__(self, other: Self) -> Self:
        """Return globs that match what either matches."""
        if self == type(self)():
            return other  # a large group is not copied for each rule
        return type(self)(
            whole=self.whole | other.whole,
            domains=self.domains | other.domains,
            beginnings=self.beginnings + other.beginnings,
            endings=self.endings + other.endings,
            contained=self.contained + other.contained,
            others=self.others + other.others,
        )

    @property
    def matches_all(self) -> bool:
        """Whether one of the globs is "*"."""
        return "" in self.beginnings

    @staticmethod
    def folded(value: str) -> str:
        """Return a value as it is compared."""
        return without_case(value[:VALUE_CHARACTERS_MAX])

    def match(self, value: str) -> bool:
        """Return whether any glob matches the whole `value`."""
        return self.match_folded(self.folded(value))

    def match_folded(self, folded: str) -> bool:
        """Return whether any glob matches a value that is folded already."""
        return (
            folded in self.whole
            or (self.domains and folded.rpartition("@")[2] in self.domains)
            or folded.startswith(self.beginnings)
            or folded.endswith(self.endings)
            or any(text in folded for text in self.contained)
            or any(pattern.match(folded) for pattern in self.others)
        )

    def match_any(self, values: Sequence[str]) -> bool:
        """Return whether any glob matches any of `values`."""
        return any(map(self.match, values))


# The address groups by their names: what `group:NAME` stands for.
Groups = Mapping[str, Globs]

# A field of a message ("sender", "header x-spam") and the globs for its values; None for any value.
FieldGlobs = tuple[str, Globs | None]


def some_texts(value: Any) -> list[str]:
    """Read a text or a list of texts that is not empty. Raises ValueError."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError("a text or a list of texts")
    return texts


def read_globs(value: Any) -> Globs:
    """Read a glob or a list of globs. Raises ValueError."""
    return Globs.of(some_texts(value))
