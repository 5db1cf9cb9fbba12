"""Policy, step 5: the rules in policies/ decide what becomes of a message, before it is accepted.

Touches: the rule files, when they are loaded; afterwards nothing, evaluation is pure.
Promises: a set of rules is whole and its tests pass, or there is none; an evaluation is bounded by
the size of the message and the number of its recipients and rules.
"""

from relay.policy import report
from relay.policy.attachments import TooManyPartsError
from relay.policy.casefile import crlf
from relay.policy.engine import RuleSet
from relay.policy.loader import PolicyError, load, read
from relay.policy.rules import Judgement, Mode, Rule
from relay.policy.testing import CaseResult, judgement_of, make_subject, run_tests

__all__ = [
    "CaseResult",
    "Judgement",
    "Mode",
    "PolicyError",
    "Rule",
    "RuleSet",
    "TooManyPartsError",
    "crlf",
    "judgement_of",
    "load",
    "make_subject",
    "read",
    "report",
    "run_tests",
]
