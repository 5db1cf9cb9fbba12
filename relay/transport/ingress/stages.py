"""The values of step 5, from the milters to the fan-out.

Each stage returns a value, which contains the value of the stage before. `acceptance` has the
stages, in their order.
"""

from collections.abc import Callable, Sequence

from msgspec import Struct

from relay.base.accounts.account import Expansion
from relay.base.message.header import ParsedContent
from relay.base.message.verdict import RateCharge, Verdict
from relay.transport.ingress.arrival import ArrivedMail
from relay.transport.ingress.forwarding import ExpandedRecipients
from relay.transport.policy.rule_book import RuleBook
from relay.transport.routing.routing_result import RoutingResult

# The arguments are an address, the alias that led to it, and whether the mail for it is a copy.
Examine = Callable[[str, str, bool], RoutingResult]


class ExaminedMail(Struct, frozen=True):
    """A message whose aliases are replaced, and whose recipients have a next hop or a rejection."""

    arrival: ArrivedMail  # with the sender that a milter or, after the rules, a rule gave it
    content: ParsedContent  # as the rules see it
    account: str  # the owner of the message, "" without one
    recipients: ExpandedRecipients  # the recipients, and the aliases that they replace
    routes: Sequence[RoutingResult]  # one for each of the recipients
    expand: Callable[[str], Expansion | None]  # returns what replaces an alias
    examine: Examine  # returns the route of an address, for mail of this sender
    charges: Sequence[RateCharge]  # the charges of a report to SRS addresses


class DecidedMail(Struct, frozen=True):
    """A message for which the rules have decided."""

    examined: ExaminedMail
    verdict: Verdict  # with one decision for each recipient that is valid, in their order
    rules: RuleBook  # the rules that were applied
    sender: str  # the reverse-path before a rule replaced it
    answers_discarded: str = ""  # why answers to reports are discarded; "": they are not

    @property
    def arrival(self) -> ArrivedMail:
        """The message, with the sender that a milter or a rule gave it."""
        return self.examined.arrival
