"""A type of options: a text that a function reads, which says what it expects."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from relay.base.phrases import shown

T = TypeVar("T")


class Parsed(click.ParamType[T]):
    """A text that `parse` converts. Its ValueError says what was expected."""

    def __init__(self, name: str, parse: Callable[[str], T], *, is_secret: bool = False) -> None:
        """With `is_secret`, an error does not show the text."""
        self.name = name
        self._parse = parse
        self._is_secret = is_secret

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> T:
        """Return the result of `parse`."""
        text = str(value)
        try:
            return self._parse(text)
        except ValueError as error:
            begin = "" if self._is_secret else f"found {shown(text)}, "
            self.fail(f"{begin}expected {error}", param, ctx)
