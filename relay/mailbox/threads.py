"""How the store's parts get their blocking work into its threads.

On the path: the store passes its own way in; what is asynchronous beside it calls that.
Holds: errors of the disk become StoreUnavailableError there.
Fails: what the function raises.
Standards: none.
"""

from collections.abc import Callable
from typing import ParamSpec, Protocol, TypeVar

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


class Run(Protocol):
    """Call a function in a thread of the store."""

    async def __call__(
        self,
        function: Callable[_Parameters, _Result],
        *args: _Parameters.args,
        **kwargs: _Parameters.kwargs,
    ) -> _Result:
        """Return what it returns."""
        ...
