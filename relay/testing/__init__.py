"""The test kit: a development relay within a test program, and a pytest plugin.

`from relay.testing import Relay`; a Relay runs in a thread with a separate event loop, on free
ports, with its state in a temporary directory. docs/testing.md describes it. Names are imported
from their modules when they are first used, because pytest imports the plugin in every test run.

- `plugin`: the fixtures `relay`, `internet` and `clock`; the report of a failed test
- `frameworks`: mail settings of Django and Flask for a relay; mail in Django's outbox
- `relay`: Relay and Mailbox, for tests without coroutines; the files that a failed test leaves
- `async_relay`: AsyncRelay, for coroutines; ports and addresses of a relay, its environment (env)
- `internet`: remote domains and their replies, as a test describes them
- `message`: a message for a test: text, links, code, attachments, bounce
- `running`: options of a relay, sending, waiting, the clock: shared by Relay and AsyncRelay
- `relay_thread`: the thread of a relay and its directory, in /dev/shm where that is possible
- `observer`: which messages a wait returns, and which the test has seen before
- `arrivals`: when a message counts as arrived; reads the Maildirs
- `waiting`: which message a wait looks for; the text of a time-out

Elsewhere: the development relay itself: `relay/development/relay.py`; scenarios:
`relay/development/internet/scenario.py`.
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
