"""Apply the mail-flow rules of policies/ to a message before it is accepted (step 5).

rule_files loads the rules and their tests, conditions and actions are the keys of `when` and
`then`, engine applies a rule set to a message, rule_tests runs the [[test]] tables and formats what
`relay policy` prints. Files are read only when the rules are loaded; an evaluation is a pure
function whose work is bounded by the size of the message and by its numbers of recipients and
rules.
"""

from relay.policy.attachment_names import TooManyPartsError
from relay.policy.engine import OverallVerdict, RuleSet
from relay.policy.rule_files import PolicyError, crlf, load_rules, read_rules
from relay.policy.rule_tests import (
    PolicyReport,
    examined_message,
    format_check,
    format_test_results,
    format_verdict,
    overall_verdict,
    run_tests,
)

__all__ = [
    "OverallVerdict",
    "PolicyError",
    "PolicyReport",
    "RuleSet",
    "TooManyPartsError",
    "crlf",
    "examined_message",
    "format_check",
    "format_test_results",
    "format_verdict",
    "load_rules",
    "overall_verdict",
    "read_rules",
    "run_tests",
]
