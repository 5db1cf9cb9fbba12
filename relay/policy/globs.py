"""Match texts against globs, in linear time and without regard to case.

On the path: conditions hold the compiled globs; every message is matched.
Holds: only * and ? are special, so "[EXTERNAL]*" means what it says; compiled once, at load.
Fails: never for text; ValueError for a glob that is too long.
Standards: none; Unicode case folding.
"""

import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

GLOB_CHARACTERS_MAX = 500
VALUE_CHARACTERS_MAX = 2000  # the rest of a longer value is not looked at


@dataclass(frozen=True, slots=True)
class Globs:
    """Some globs, any of which may match; the common kinds need no regular expression."""

    whole: frozenset[str]
    endings: tuple[str, ...]
    others: tuple[re.Pattern[str], ...]

    @classmethod
    def of(cls, patterns: Iterable[str]) -> Self:
        """Compile `patterns`. Raises ValueError that says what was expected."""
        whole, endings, others = set(), [], []
        for pattern in patterns:
            if not 0 < len(pattern) <= GLOB_CHARACTERS_MAX:
                raise ValueError(f"globs of 1 to {GLOB_CHARACTERS_MAX} characters")
            folded = pattern.casefold()
            if "*" not in folded and "?" not in folded:
                whole.add(folded)
            elif folded[0] == "*" and "*" not in folded[1:] and "?" not in folded:
                endings.append(folded[1:])
            else:
                others.append(re.compile(fnmatch.translate(folded.replace("[", "[[]"))))
        return cls(frozenset(whole), tuple(endings), tuple(others))

    def match(self, value: str) -> bool:
        """Whether any glob matches the whole of `value`."""
        folded = value[:VALUE_CHARACTERS_MAX].casefold()
        return (
            folded in self.whole
            or folded.endswith(self.endings)
            or any(other.match(folded) for other in self.others)
        )

    def match_any(self, values: Sequence[str]) -> bool:
        """Whether any glob matches any value."""
        return any(map(self.match, values))
