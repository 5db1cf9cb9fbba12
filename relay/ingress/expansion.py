"""Expand the recipients of a message by the aliases of accounts.toml (step 5), before the rules.

Pure functions of the recipients and the aliases. An address that is reached twice, or that is named
beside its alias, is one recipient. An alias that leads to one address ends as redirected, and that
address has its parameters. Another one ends as expanded: there are only reports of failures and
delays about its addresses.

RFC 5321 3.9.1; RFC 3461 5.2.1 (ORCPT), 5.2.7.2, 5.2.7.3.
"""

from collections.abc import Callable, Sequence

from msgspec import Struct
from msgspec.structs import replace

from relay.accounts.account import Expansion
from relay.base.phrases import counted
from relay.message.envelope import ForwardPath, Notify
from relay.message.lifecycle import RecipientState
from relay.message.outcome import Evidence
from relay.message.status import own_reply
from relay.mime.dsn import ReportedRecipient
from relay.spool.types import NewRecipient

EXPANDED_MAX = 10_000  # addresses that the aliases of one message lead to
_TOO_MANY = "5.5.3"  # RFC 3463 3.6: too many recipients
_LOOP = "5.4.6"  # RFC 3463 3.5: routing loop detected
_LOOP_TEXT = "mail loop: this alias has forwarded the message before (Delivered-To)"
_EXPANDED = "2.1.5"  # RFC 3463 3.2: destination address valid
_NEVER = frozenset({Notify.NEVER})
_SUCCESS = frozenset({Notify.SUCCESS})
_DEFAULT = frozenset({Notify.FAILURE, Notify.DELAY})  # without NOTIFY


class ExpandedRecipients(Struct, frozen=True):
    """The recipients that get the message. `positions` are their places in the envelope, 0 for
    those that an alias led to; `forwarded_by` is the last alias that led to each, or "". `aliases`
    are the recipients that they replace, in their final states.
    """

    paths: Sequence[ForwardPath]
    positions: Sequence[int]
    forwarded_by: Sequence[str]
    aliases: tuple[NewRecipient, ...] = ()

    @property
    def reported(self) -> tuple[ReportedRecipient, ...]:
        """The aliases of which the sender gets a report: NOTIFY=SUCCESS of a list."""
        return tuple(
            ReportedRecipient(one.path, Evidence(one.status, one.reply))
            for one in self.aliases
            if one.state is RecipientState.EXPANDED and Notify.SUCCESS in one.path.notify
        )


def expand_recipients(
    paths: Sequence[ForwardPath], expand: Callable[[str], Expansion | None]
) -> ExpandedRecipients:
    """Replace each recipient that is an alias, or forwards, by those that get its mail.

    An alias that goes beyond EXPANDED_MAX fails, and so does one without a target: a loop.
    """
    expansions = [expand(path.address) for path in paths]
    if not any(expansions):  # nearly always
        return ExpandedRecipients(paths, range(1, len(paths) + 1), [""] * len(paths))
    positions = [at for at, expansion in enumerate(expansions, 1) if expansion is None]
    found = [paths[at - 1] for at in positions]
    forwarded_by = [""] * len(found)
    places = {path.address.lower(): place for place, path in enumerate(found)}
    aliases: list[NewRecipient] = []
    count = 0
    for position, (path, expansion) in enumerate(zip(paths, expansions, strict=True), 1):
        if expansion is None:
            continue
        start = NewRecipient(path, position=position)
        if not expansion.targets:
            reply = own_reply(_LOOP, f"<{path.address}>: {_LOOP_TEXT}")
            aliases.append(replace(start, state=RecipientState.FAILED, status=_LOOP, reply=reply))
            continue
        if count + len(expansion.targets) > EXPANDED_MAX:
            aliases.append(_failed(start, expansion))
            continue
        count += len(expansion.targets)
        aliases.append(_replaced(start, expansion))
        onward = _onward(path, is_list=len(expansion.targets) > 1)
        for target in expansion.targets:
            place = places.setdefault(target.address.lower(), len(found))
            if place == len(found):
                found.append(replace(onward, address=target.address))
                positions.append(0)
                forwarded_by.append(target.forwarded_by)
            else:
                notify = _either(found[place].notify, onward.notify)
                found[place] = replace(found[place], notify=notify)
    return ExpandedRecipients(found, positions, forwarded_by, tuple(aliases))


def _failed(start: NewRecipient, expansion: Expansion) -> NewRecipient:
    text = (
        f"<{start.path.address}>: {counted(len(expansion.targets), 'address')} and those of the"
        f" other aliases are over {EXPANDED_MAX}, send to it in another message"
    )
    reply = own_reply(_TOO_MANY, text)
    return replace(start, state=RecipientState.FAILED, status=_TOO_MANY, reply=reply)


def _replaced(start: NewRecipient, expansion: Expansion) -> NewRecipient:
    successors = expansion.addresses
    if len(successors) == 1:
        return replace(start, state=RecipientState.REDIRECTED, successors=successors)
    reply = own_reply(_EXPANDED, f"expanded to {len(successors)} addresses")
    return replace(
        start, state=RecipientState.EXPANDED, successors=successors, status=_EXPANDED, reply=reply
    )


def _onward(path: ForwardPath, *, is_list: bool) -> ForwardPath:
    """Return the parameters that an alias passes on."""
    notify = path.notify
    if is_list and Notify.SUCCESS in notify:  # the alias itself has the report of success
        notify = notify - _SUCCESS or _NEVER
    kind = "rfc822" if path.address.isascii() else "utf-8"
    return ForwardPath(path.address, notify, path.orcpt or f"{kind};{path.address}")


def _either(one: frozenset[Notify], other: frozenset[Notify]) -> frozenset[Notify]:
    """Return the reports that one of two ways to an address asks for."""
    if _NEVER in (one, other):
        return other if one == _NEVER else one
    asked = one | other
    if one and other:
        return asked
    return asked | _DEFAULT if Notify.SUCCESS in asked else frozenset()
