"""Fan-out: recipients become queue entries or end in a final state."""

import pytest

from relay.base.accounts.account import AliasTarget, Expansion
from relay.base.message.envelope import ForwardPath
from relay.base.message.lifecycle import RecipientState
from relay.base.message.nexthop import HopKind, NextHop
from relay.base.message.verdict import (
    AddedRecipient,
    Hold,
    RecipientVerdict,
    Verdict,
    VerdictAction,
)
from relay.store.spool.types import NO_EXTRA, EntryExtra
from relay.transport.ingress.fanout import fan_out, with_next_hops
from relay.transport.ingress.forwarding import expand_recipients
from relay.transport.routing.routing_result import InvalidRecipient, LocalRecipient, RemoteRecipient

MX_B = NextHop(HopKind.MX, "b.test")
CONTENTS = (b"zero", b"one", b"two")


def examine(address: str, _by: str = "", _is_copy: bool = False):
    domain = address.rpartition("@")[2]
    if domain == "here.test":
        return LocalRecipient(address)
    if domain == "held.test":
        return RemoteRecipient(MX_B, held="route r")
    if domain == "bad.test":
        return InvalidRecipient("5.1.1", f"550 5.1.1 <{address}>: no such user here")
    return RemoteRecipient(NextHop(HopKind.MX, domain))


def examine_chosen(address: str, way: str, usual: LocalRecipient | RemoteRecipient):
    assert usual == examine(address)
    return RemoteRecipient(NextHop.parse(way), held=usual.held, chosen=True)


def no_alias(_address: str) -> None:
    """Nobody is an alias."""


def fan(*recipients: RecipientVerdict, additions=(), notify=frozenset()):
    """Fan out for these recipients, with the verdicts of the rules for the valid ones."""
    paths = [ForwardPath(each.address, notify, f"rfc822;{each.address}") for each in recipients]
    found = [examine(path.address) for path in paths]
    asked = [
        verdict
        for verdict, one in zip(recipients, found, strict=True)
        if not isinstance(one, InvalidRecipient)
    ]
    verdict = Verdict(tuple(asked), tuple(additions), CONTENTS, ())
    recipients = expand_recipients(paths, no_alias)
    return fan_out(
        recipients,
        with_next_hops(found, verdict, examine_chosen),
        verdict,
        expand=no_alias,
        examine=lambda _added, address, _by: examine(address),
        sender_of=lambda *_: "",
    )


def keep(address: str, content: int = 0) -> RecipientVerdict:
    return RecipientVerdict(address, content=content)


HUB = NextHop(HopKind.SMTP, "hub.test", 25)


def sent(address: str, way: str = str(HUB), content: int = 0) -> RecipientVerdict:
    return RecipientVerdict(address, content=content, next_hop=way)


def test_what_a_rule_sends_elsewhere_has_an_entry_with_a_chosen_next_hop():
    result = fan(
        sent("x@b.test"),
        sent("y@here.test"),
        keep("z@b.test"),
        sent("h@held.test"),
        sent("u@bad.test"),
        RecipientVerdict("d@b.test", VerdictAction.DISCARD, next_hop=str(HUB)),
        sent("w@b.test", content=1),
        additions=[AddedRecipient("copy@b.test", "r")],
    )
    found = {
        (entry.next_hop, entry.extra, tuple(each.path.address for each in entry.recipients))
        for entry in result.entries
    }
    chosen = EntryExtra(chosen=True)
    assert found == {
        (HUB, chosen, ("x@b.test", "y@here.test")),
        (HUB, chosen, ("w@b.test",)),  # another content
        (MX_B, NO_EXTRA, ("z@b.test", "copy@b.test")),  # what rules add goes where the routes say
        (HUB, EntryExtra(chosen=True, reason="route r"), ("h@held.test",)),
    }
    assert [(each.path.address, each.state, each.status) for each in result.final_recipients] == [
        ("u@bad.test", RecipientState.FAILED, "5.1.1"),
        ("d@b.test", RecipientState.DISCARDED, ""),
    ]


def test_what_a_rule_holds_has_an_entry_beside_the_others_of_its_route():
    route, hold = RemoteRecipient(MX_B), Hold("why", "rule")
    verdicts = [
        keep("a@b.test"),
        RecipientVerdict("b@b.test", hold=hold),
        keep("c@b.test", content=1),
        RecipientVerdict("d@b.test", junk=hold, in_junk=True),
        keep("e@b.test"),
    ]
    result = fan_out(
        expand_recipients([ForwardPath(each.address) for each in verdicts], no_alias),
        [route] * len(verdicts),
        Verdict(tuple(verdicts), (), CONTENTS, ()),
        examine=examine,
        expand=no_alias,
        sender_of=lambda *_: "",
    )
    found = [
        (entry.extra.rule, "".join(each.path.address[0] for each in entry.recipients))
        for entry in result.entries
    ]
    assert found == [("", "ae"), ("rule", "bd"), ("", "c")]


@pytest.mark.parametrize("address", ["member@b.test", "member@here.test"])
def test_what_an_alias_sends_by_a_chosen_next_hop_has_its_sender_and_names_the_alias(address):
    alias = Expansion((AliasTarget(address, ("list@here.test",)),))
    expand = {"list@here.test": alias}.get
    recipients = expand_recipients([ForwardPath("list@here.test")], expand)
    verdict = Verdict((sent(address),), (), CONTENTS, ())
    result = fan_out(
        recipients,
        with_next_hops([examine(address)], verdict, examine_chosen),
        verdict,
        examine=examine,
        expand=expand,
        sender_of=lambda forwarded_by, to, _: f"srs of {forwarded_by} for {to}",
    )
    (entry,) = result.entries
    assert entry.extra == EntryExtra(
        chosen=True, sender=f"srs of list@here.test for {address}", delivered_to="list@here.test"
    )
