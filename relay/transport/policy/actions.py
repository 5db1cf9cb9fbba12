"""The actions of mail-flow rules: each key of `then` is a class and a line in ACTIONS.

To add an action, write a frozen Struct with parse(), add it to RuleAction and ACTIONS, and apply it
in engine. parse() raises ValueError that says what was expected. The classes are in
relay/transport/policy/recipient_actions.py and relay/transport/policy/content_actions.py.
"""

from relay.transport.policy.content_actions import (
    CcAction,
    DisclaimerAction,
    HeaderEdit,
    RemoveHeaderAction,
    SetHeaderAction,
    SetSenderAction,
    SubjectPrefixAction,
)
from relay.transport.policy.recipient_actions import (
    BccAction,
    DeferAction,
    DiscardAction,
    HoldAction,
    JournalAction,
    NextHopAction,
    NotifyAction,
    QuarantineAction,
    RateLimitAction,
    RedirectAction,
    RejectAction,
)

FINAL = ("reject", "discard", "redirect", "quarantine", "defer")  # no action can follow these
RuleAction = (
    RejectAction
    | DeferAction
    | HoldAction
    | NextHopAction
    | RateLimitAction
    | DiscardAction
    | RedirectAction
    | QuarantineAction
    | BccAction
    | JournalAction
    | NotifyAction
    | DisclaimerAction
    | HeaderEdit
)

ACTIONS: dict[str, type[RuleAction]] = {
    "defer": DeferAction,
    "hold": HoldAction,
    "next_hop": NextHopAction,
    "rate_limit": RateLimitAction,
    "reject": RejectAction,
    "discard": DiscardAction,
    "redirect": RedirectAction,
    "quarantine": QuarantineAction,
    "cc": CcAction,
    "bcc": BccAction,
    "journal": JournalAction,
    "notify": NotifyAction,
    "set_header": SetHeaderAction,
    "set_sender": SetSenderAction,
    "remove_header": RemoveHeaderAction,
    "subject_prefix": SubjectPrefixAction,
    "disclaimer": DisclaimerAction,
}
