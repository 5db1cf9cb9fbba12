"""The test kit: a development relay within a test program, and a pytest plugin.

`from relay.testing import Relay` runs one in a thread with an event loop of its own, on free ports,
with its state in a temporary directory. `plugin` has the fixtures. docs/testing.md describes both.
`relay` and `async_relay` are its two faces, `running` what they share; `observer` waits for mail,
`arrivals` reads Maildirs, `waiting` has what is waited for and the text of a time-out; `internet`
scripts remote hosts.
Names are imported from their modules when they are first used, because pytest imports the plugin
in every test run.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from relay.testing.async_relay import AsyncRelay
    from relay.testing.message import Bounce, Message, MessageAttachment
    from relay.testing.relay import Relay
    from relay.testing.waiting import WaitTimeout

__all__ = ["AsyncRelay", "Bounce", "Message", "MessageAttachment", "Relay", "WaitTimeout"]

_MODULES = {
    "AsyncRelay": "async_relay",
    "Bounce": "message",
    "Message": "message",
    "MessageAttachment": "message",
    "Relay": "relay",
    "WaitTimeout": "waiting",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
