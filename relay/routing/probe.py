"""Ask whether the name servers answer at all: `relay check`'s question.

On the path: beside it.
Holds: any definite answer is good, also "no such name".
Fails: never; what is wrong is a text.
Standards: RFC 1035.
"""

from collections.abc import Sequence

from relay.routing.answers import Silence
from relay.routing.questions import NameServers
from relay.settings.tree import Address

_NAME = "relay-check.invalid"  # RFC 6761 6.4: nobody has it


async def name_servers_answer(nameservers: Sequence[Address], *, timeout_s: float) -> str:
    """Return "" when they answer, else why not; none given: the system's."""
    try:
        answer, _ = await NameServers(nameservers, timeout_s=timeout_s).ask((_NAME, "MX"))
    except OSError as error:
        return str(error)
    return answer.text if isinstance(answer, Silence) else ""
