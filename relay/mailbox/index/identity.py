"""Which message a file is, when files came, went, and changed their names.

On the path: catchup hands in what vanished and what appeared; rows.py writes what comes out.
Holds: an id stays with its message over moves and flag changes, whoever makes them; two files never
have one id. Of two generations of a draft the higher is the message; a crash between two left the
lower one, which goes.
Fails: never by itself.
Standards: docs/design.md 3; Maildir (a base name is never used twice).
"""

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from relay.mailbox.index.rows import Body, Place, Row, Rows, Sighting
from relay.mailbox.message_file import (
    MessageName,
    foreign_id,
    is_delivered_id,
    is_our_name,
    parse_name,
)
from relay.mime.delivered import id_in

_HEAD_BYTES = 2048
_BLOCK = b"X-Relay-Draft: 1 "  # also where a mail server has copied it with other line ends
_BASE_NAME = re.compile(rb'"base_name":"([^"\\]{1,255})"')


@dataclass(frozen=True, slots=True)
class Claim:
    """The id that a file says is its own; `named`: in a name that the store gave it."""

    message_id: str
    generation: int
    named: bool


def claim_of(path: str, name: MessageName) -> Claim | None:
    """Return what a file says of itself, None for one that another program made."""
    if is_our_name(name.file_name):
        return Claim(name.message_id, name.generation, named=True)
    head = _head(path)
    if head.startswith(_BLOCK):
        return _claim_of_block(head)
    message_id = id_in(head)
    return Claim(message_id, 1, named=False) if is_delivered_id(message_id) else None


def _claim_of_block(head: bytes) -> Claim | None:
    found = _BASE_NAME.search(head.replace(b"\r\n", b"\n").replace(b"\n ", b""))
    if found is None:
        return None
    base_name = found[1].decode("utf-8", "surrogateescape")
    name = parse_name(base_name) if is_our_name(base_name) else None
    return Claim(name.message_id, name.generation, named=False) if name else None


def _head(path: str) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return b""
    try:
        return os.pread(descriptor, _HEAD_BYTES, 0)
    except OSError:
        return b""
    finally:
        os.close(descriptor)


# An IMAP server links a message to its new place and unlinks the old one later: with many messages
# much later. What is copied and removed within this time was moved.
_MOVE_US = 60_000_000


class Resolver:
    """One round: `lost` are rows whose file is not there any more, `found` files without a row."""

    def __init__(
        self,
        rows: Rows,
        lost: Iterable[Row],
        *,
        claim_of: Callable[[Sighting], Claim | None],
        is_there: Callable[[Place], bool],
    ) -> None:
        """`claim_of` and `is_there` ask the disk."""
        self._rows = rows
        self._claim_of = claim_of
        self._is_there = is_there
        self._lost = {row.uid: row for row in lost}
        self._lost_ids = {row.message_id: row for row in self._lost.values()}
        self._lost_stems: dict[bytes, list[Row]] = {}
        self._lost_bodies: dict[Body, list[Row]] = {}
        for row in self._lost.values():
            self._lost_stems.setdefault(row.stem, []).append(row)
            self._lost_bodies.setdefault(row.body, []).append(row)
        self._superseded: list[Place] = []

    def resolve(self, found: Iterable[Sighting]) -> list[Place]:
        """Write what happened into the rows; return the files that are to be removed."""
        stayed_first = sorted(found, key=self._is_elsewhere)
        rest = [one for one in stayed_first if not self._keep_by_stem(one)]
        claimed = [(one, self._claim_of(one)) for one in rest]
        claimed.sort(key=_order)
        for sighting, claim in claimed:
            if not self._keep_by_claim(sighting, claim) and not self._keep_by_body(sighting):
                self._add(sighting, claim)
        for row in list(self._lost.values()):
            self._let_go(row)
        return self._superseded

    def _is_elsewhere(self, sighting: Sighting) -> bool:
        """Whether no file of that base name vanished in its folder: then it may be a copy."""
        lost = self._lost_stems.get(sighting.stem, ())
        return all(row.place.folder != sighting.place.folder for row in lost)

    def _keep_by_stem(self, sighting: Sighting) -> bool:
        """Know a file that was renamed: its flags, its folder, or from new/ to cur/."""
        candidates = [row for row in self._lost_stems.get(sighting.stem, ()) if self._has(row)]
        if not candidates:
            return False
        self._keep(max(candidates, key=lambda row: _likeness(row, sighting)), sighting)
        return True

    def _keep_by_claim(self, sighting: Sighting, claim: Claim | None) -> bool:
        """Know a file that says who it is, if nobody else has that id."""
        if claim is None:
            return False
        row = self._lost_ids.get(claim.message_id)
        if row is not None and self._has(row):
            self._keep(row, sighting, generation=claim.generation)
            return True
        holder = self._rows.with_id(claim.message_id)
        if holder is None:
            self._rows.add(sighting, claim.message_id, claimed="", generation=claim.generation)
            return True
        if not self._is_there(holder.place):  # it moved between the look at its old place and now
            self._rows.change(holder, sighting, generation=claim.generation)
            return True
        is_higher = claim.generation > holder.generation
        lower = holder.place if is_higher else sighting.place
        if (
            not claim.named
            or claim.generation == holder.generation
            or not self._rows.is_draft(lower)
            or self._may_be_copy(holder.place, sighting.place)
        ):
            return False
        self._superseded.append(lower)
        if is_higher:
            self._rows.change(holder, sighting, generation=claim.generation)
        return True

    def _may_be_copy(self, one: Place, other: Place) -> bool:
        """Whether one of two generations may be a copy that an IMAP server made of the lower.

        Once there is an index, such a copy has an id of its own and is no rival.
        """
        return self._rows.is_first and one.folder != other.folder

    def _keep_by_body(self, sighting: Sighting) -> bool:
        """Know a file that has vanished elsewhere at the same time."""
        for row in self._lost_bodies.get(sighting.body, ()):
            if self._has(row):
                self._keep(row, sighting)
                return True
        return False

    def _add(self, sighting: Sighting, claim: Claim | None) -> None:
        """Take a file for a message of its own: a new one, or a copy."""
        stem = sighting.name.stem
        message_id, number = sighting.name.message_id, 0
        if is_our_name(stem):  # which is another's
            message_id = foreign_id(stem)
        while self._is_taken(message_id):
            number += 1
            message_id = foreign_id(f"{stem}/{number}")
        claimed = claim.message_id if claim else ""
        generation = claim.generation if claim else 1
        self._rows.add(sighting, message_id, claimed=claimed, generation=generation)

    def _let_go(self, row: Row) -> None:
        """Take a message out, unless a copy of it was made a moment ago: then it was moved."""
        twins = [one for one in self._rows.twins(row) if one.uid not in self._lost]
        heirs = [one for one in twins if self._is_heir(one, row)]
        del self._lost[row.uid]
        if heirs:
            self._rows.pass_on(row, max(heirs, key=lambda one: one.seen_us))
        else:
            self._rows.remove(row)

    def _is_heir(self, twin: Row, row: Row) -> bool:
        """Whether another program made `twin` from `row`, and not the other way round."""
        is_claimed = twin.claimed == row.message_id  # else, seen together, either may be the copy
        is_younger = twin.seen_us >= row.seen_us if is_claimed else twin.seen_us > row.seen_us
        is_fresh = twin.seen_us >= max(self._rows.now_us - _MOVE_US, 1)
        # The store never gives two files one name; what has the name of another is no copy of ours.
        is_foreign = twin.stem == row.stem or not is_our_name(os.fsdecode(twin.stem))
        return is_younger and is_fresh and is_foreign

    def _keep(self, row: Row, sighting: Sighting, *, generation: int = 0) -> None:
        del self._lost[row.uid]
        self._rows.change(row, sighting, generation=generation or row.generation)

    def _has(self, row: Row) -> bool:
        return row.uid in self._lost

    def _is_taken(self, message_id: str) -> bool:
        return self._rows.with_id(message_id) is not None


def _likeness(row: Row, sighting: Sighting) -> tuple[bool, bool]:
    return row.body == sighting.body, row.place.folder == sighting.place.folder


def _order(one: tuple[Sighting, Claim | None]) -> tuple[bool, int, int, bytes]:
    """Those that the store named come first, the highest generation first; then the oldest."""
    sighting, claim = one
    named = claim is not None and claim.named
    generation = claim.generation if claim and named else 0
    return not named, -generation, sighting.body.written_ns, sighting.place.file_name
