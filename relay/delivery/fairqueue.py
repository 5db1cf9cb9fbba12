"""Claims that wait for a connection, with fair turns among senders.

On the path: a site keeps its ready claims here; its connections take them out.
Holds: bounded by the scheduler's window; a sender with many does not delay another's one.
Fails: never.
Standards: round robin.
"""

from collections import deque

from relay.spool.types import Claim


class FairQueue:
    """First in, first out for each sender; round robin among senders."""

    def __init__(self) -> None:
        self._by_sender: dict[str, deque[Claim]] = {}
        self._turns: deque[str] = deque()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def push(self, claim: Claim) -> None:
        """Put a claim behind those of its sender."""
        sender = claim.message.reverse_path
        waiting = self._by_sender.get(sender)
        if waiting is None:
            waiting = self._by_sender[sender] = deque()
            self._turns.append(sender)
        waiting.append(claim)
        self._length += 1

    def pop(self) -> Claim | None:
        """Take the claim whose turn it is."""
        if not self._turns:
            return None
        sender = self._turns.popleft()
        waiting = self._by_sender[sender]
        claim = waiting.popleft()
        if waiting:
            self._turns.append(sender)
        else:
            del self._by_sender[sender]
        self._length -= 1
        return claim

    def drain(self) -> list[Claim]:
        """Take everything."""
        taken = []
        while (claim := self.pop()) is not None:
            taken.append(claim)
        return taken
