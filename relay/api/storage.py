"""POST /storage/prune: history that is not to be kept goes now.

On the path: beside it; `relay storage prune` asks again until it is `ended`.
Holds: for operators only; one request removes a bounded number of messages.
Fails: ApiError 400 for the body, 403 for the role.
Standards: none; JSON from docs/names.md.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from relay.api.means import Means
from relay.api.parameters import read_body
from relay.api.viewer import Viewer
from relay.http.call import Call
from relay.http.errors import ApiError

_AGE_S_MAX = 1e9


class _Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    older_than_s: float | None = None
    dry_run: bool = False


class Storage:
    """The handler of /storage."""

    def __init__(self, means: Means) -> None:
        self._means = means

    async def prune(self, call: Call, viewer: Viewer) -> Mapping[str, Any]:
        """POST /storage/prune; without `older_than_s` what spool.keep says."""
        viewer.check_may_operate()
        body = read_body(await call.body(), _Body)
        if body.older_than_s is not None and not 0 <= body.older_than_s <= _AGE_S_MAX:
            text = f"expected a number of seconds up to {_AGE_S_MAX:.0f}"
            raise ApiError(400, "BadRequest", f"The field older_than_s: {text}.")
        return await self._means.prune(body.older_than_s, body.dry_run)
