"""The conditions of the queue page: read from a query or a form, and written into links and forms.

They become the parameters of GET /relay/v1/queue or the body of a queue command, so that the API's
checks are those of the pages.
"""

from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import quote

from msgspec import Struct

from relay.api.request_parameters import TEXT_CONDITIONS
from relay.http.errors import ApiError, quoted
from relay.settings.values import WRITTEN_DURATION_EXPECTED, parse_duration

_AGE = "older_than"


class QueueSelection(Struct, frozen=True):
    """Which entries: `ids`, or all that meet `conditions`; none of both selects nothing."""

    ids: tuple[str, ...] = ()
    conditions: Mapping[str, str] = {}
    all: bool = False

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The fields of a form or a link that select the same."""
        pairs = [("id", one) for one in self.ids] + list(self.conditions.items())
        return [*pairs, ("all", "true")] if self.all else pairs

    @property
    def words(self) -> str:
        """The selection in words."""
        if self.ids:
            return "the selected entries" if len(self.ids) > 1 else f"the entry {self.ids[0]}"
        if not self.conditions:
            return "all entries in the queue" if self.all else "nothing"
        parts = [f"{name.replace('_', ' ')} {text}" for name, text in self.conditions.items()]
        return f"all entries with {', '.join(parts)}"

    def query(self) -> dict[str, str]:
        """Return the parameters of GET /relay/v1/queue. Raises ApiError 400."""
        query = dict(self.conditions)
        if self.ids:
            query["id"] = ",".join(quote(one, safe="") for one in self.ids)
        if _AGE in query:
            query[_AGE] = f"{self._older_than_s():g}"
        return query

    def body(self) -> dict[str, Any]:
        """Return the selector in the body of a queue command. Raises ApiError 400."""
        body: dict[str, Any] = dict(self.conditions) | {"ids": list(self.ids)}
        if body.pop(_AGE, None):
            body["older_than_s"] = self._older_than_s()
        return body | ({"all": True} if self.all and not self.conditions else {})

    def _older_than_s(self) -> float:
        text = self.conditions[_AGE]
        try:
            return parse_duration(text)
        except ValueError:
            message = f"older than: found {quoted(text)}, expected {WRITTEN_DURATION_EXPECTED}."
            raise ApiError(400, "BadRequest", message) from None


def selection_of(pairs: Collection[tuple[str, str]]) -> QueueSelection:
    """Return the selection in the fields of a query or a form; an empty field is no condition."""
    conditions = {
        name: text.strip()
        for name, text in pairs
        if name in (*TEXT_CONDITIONS, _AGE) and text.strip()
    }
    ids = tuple(dict.fromkeys(text for name, text in pairs if name == "id" and text))
    return QueueSelection(ids, conditions, all=("all", "true") in pairs)
