"""Regular expressions for the conditions of mail-flow rules: RE2, which takes linear time.

A pattern matches anywhere in a text, without regard to case. All patterns for one field are
compiled into one PatternSet, which reads a text once. This is the only module that imports `re2`.
It guards against three traps: a match with a set that is not compiled ends the process; a match
that runs out of memory returns no match; and the numbers of matching patterns are in no order.

re2 releases the interpreter lock while it matches, so that other threads run.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Self

from msgspec import Struct

from relay.base.phrases import shown

# limit of rules: steps of one pattern, as it is compiled
PATTERN_STEPS_MAX = 1_000
# limit of rules: steps of all patterns for the same field
SET_STEPS_MAX = 50_000
_MEMORY_BYTES_MAX = 16 * 1024 * 1024  # of one set: enough to compile SET_STEPS_MAX
_ALWAYS = ""  # a pattern that is added to each set, and that always matches


class PatternError(Exception):
    """A set cannot be compiled, or ran out of memory. The rule cannot be applied."""


class Pattern(Struct, frozen=True):
    """A regular expression that RE2 accepts."""

    text: str
    steps: int  # the size of its program: a measure of the work

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Read a regular expression. Raises ValueError that says what was expected."""
        if not isinstance(value, str) or not value:
            raise ValueError("a regular expression")
        try:
            steps = _re2().compile(value, _options()).programsize
        except UnicodeEncodeError:
            raise ValueError("a regular expression in Unicode") from None
        except _re2().error as error:
            reason = shown(error.args[0].decode(errors="replace"))
            raise ValueError(f"a regular expression that RE2 accepts: it says {reason}") from None
        if steps > PATTERN_STEPS_MAX:
            raise ValueError(
                f"a regular expression of at most {PATTERN_STEPS_MAX} steps, not {steps}: "
                "counted repetitions and Unicode classes have many"
            )
        return cls(value, steps)

    def excerpt(self, text: str) -> str:
        """Return the first match in a printable `text`, or ""."""
        match = _re2().compile(self.text, _options()).search(text)
        return str(match.group()) if match else ""


class PatternSet:
    """Patterns that are compiled together. Immutable, and safe to use in several threads."""

    def __init__(self, patterns: Iterable[Pattern]) -> None:
        """Compile the patterns. Raises PatternError."""
        self.patterns = tuple(dict.fromkeys(patterns))
        compiled = _re2().Set.SearchSet(_options())
        try:
            for pattern in (*self.patterns, Pattern(_ALWAYS, 0)):
                compiled.Add(pattern.text)
            compiled.Compile()
        except _re2().error:
            count = len(self.patterns)
            raise PatternError(f"{count} patterns cannot be compiled together") from None
        self._compiled = compiled

    def matching(self, text: str) -> tuple[Pattern, ...]:
        """Return the patterns that match `text`, in their order. Raises PatternError.

        Characters that UTF-8 does not have (lone surrogates) are matched as "?".
        """
        numbers = sorted(self._compiled.Match(text.encode(errors="replace")) or ())
        if not numbers or numbers[-1] != len(self.patterns):  # the number of _ALWAYS
            raise PatternError("the patterns ran out of memory")
        return tuple([self.patterns[number] for number in numbers[:-1]])


# By the field that they are for: "header x-spam".
PatternSets = Mapping[str, PatternSet]


def _re2() -> Any:
    """Return the module re2. It takes 3 MB, which a relay without patterns does not need."""
    import re2  # noqa: PLC0415 - see above

    return re2


def _options() -> Any:
    options = _re2().Options()
    options.max_mem = _MEMORY_BYTES_MAX
    options.case_sensitive = False
    options.log_errors = False  # to stderr
    return options
