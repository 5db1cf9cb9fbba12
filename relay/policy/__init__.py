"""Step 5: apply the mail-flow rules of policies/ to a message before it is accepted.

`conditions` and `actions` have the keys of `when` and `then`. `rule_files` loads the rules,
`engine` applies them, `rule_tests` runs the [[test]] tables and formats the output of `relay
policy`. Files are read only when the rules are loaded. An evaluation is a pure function; its cost
is bounded by the size of the message and the numbers of recipients and rules.
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
