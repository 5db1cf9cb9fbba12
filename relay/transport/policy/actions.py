"""The actions of mail-flow rules: each key of `then` is a class and a line in ACTIONS.

To add an action, write a frozen Struct with parse(), add it to RuleAction and ACTIONS, and apply it
in engine. `make docs` puts its docstring, the effect and the value, into docs/policy-actions.md.
parse() raises ValueError that says what was expected. The classes are in
relay/transport/policy/recipient_actions.py and relay/transport/policy/content_actions.py.
"""

from relay.transport.policy import content_actions, recipient_actions

FINAL = ("reject", "discard", "redirect", "quarantine", "defer")  # no action can follow these
RuleAction = (
    recipient_actions.RejectAction
    | recipient_actions.DeferAction
    | recipient_actions.HoldAction
    | recipient_actions.NextHopAction
    | recipient_actions.RateLimitAction
    | recipient_actions.DiscardAction
    | recipient_actions.RedirectAction
    | recipient_actions.QuarantineAction
    | recipient_actions.BccAction
    | recipient_actions.JournalAction
    | recipient_actions.NotifyAction
    | content_actions.DisclaimerAction
    | content_actions.HeaderEdit
)

ACTIONS: dict[str, type[RuleAction]] = {
    "defer": recipient_actions.DeferAction,
    "hold": recipient_actions.HoldAction,
    "next_hop": recipient_actions.NextHopAction,
    "rate_limit": recipient_actions.RateLimitAction,
    "reject": recipient_actions.RejectAction,
    "discard": recipient_actions.DiscardAction,
    "redirect": recipient_actions.RedirectAction,
    "quarantine": recipient_actions.QuarantineAction,
    "cc": content_actions.CcAction,
    "bcc": recipient_actions.BccAction,
    "journal": recipient_actions.JournalAction,
    "notify": recipient_actions.NotifyAction,
    "set_header": content_actions.SetHeaderAction,
    "set_sender": content_actions.SetSenderAction,
    "remove_header": content_actions.RemoveHeaderAction,
    "subject_prefix": content_actions.SubjectPrefixAction,
    "disclaimer": content_actions.DisclaimerAction,
}
