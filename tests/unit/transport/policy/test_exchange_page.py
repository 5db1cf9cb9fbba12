"""docs/coming-from-postfix.md (Rules of Exchange): it names each condition and action of Exchange, and its examples load."""

import re
from pathlib import Path

from relay.transport.policy.actions import ACTIONS
from relay.transport.policy.conditions import CONDITIONS
from relay.transport.policy.rule_files import load_rules
from tests.support.tables import each_row

TEXT = (Path(__file__).parents[4] / "docs/coming-from-postfix.md").read_text(encoding="utf-8")
PAGE = TEXT.partition("\n## Rules of Exchange\n")[2].partition("\n## ")[0]
NAMES = """
From FromMemberOf FromScope SenderDomainIs FromAddressContainsWords FromAddressMatchesPatterns SenderIpRanges
SenderADAttributeContainsWords SenderADAttributeMatchesPatterns SentTo SentToMemberOf SentToScope RecipientDomainIs
RecipientAddressContainsWords RecipientAddressMatchesPatterns AnyOfRecipientAddressContainsWords
AnyOfRecipientAddressMatchesPatterns AnyOfToHeader AnyOfCcHeader AnyOfToCcHeader BetweenMemberOf1 BetweenMemberOf2
ManagerForEvaluatedUser SubjectContainsWords SubjectMatchesPatterns SubjectOrBodyContainsWords
SubjectOrBodyMatchesPatterns HeaderContainsMessageHeader HeaderContainsWords HeaderMatchesMessageHeader
HeaderMatchesPatterns AttachmentNameMatchesPatterns AttachmentExtensionMatchesWords AttachmentContainsWords
AttachmentSizeOver AttachmentHasExecutableContent AttachmentIsPasswordProtected AttachmentIsUnsupported
MessageSizeOver MessageTypeMatches HasClassification HasNoClassification SCLOver WithImportance
ContentCharacterSetContainsWords RejectMessageReasonText RejectMessageEnhancedStatusCode DeleteMessage Quarantine
RedirectMessageTo BlindCopyTo CopyTo AddToRecipients AddManagerAsRecipientType ModerateMessageByUser
ModerateMessageByManager SetHeaderName SetHeaderValue RemoveHeader PrependSubject ApplyHtmlDisclaimerText
ApplyHtmlDisclaimerLocation ApplyHtmlDisclaimerFallbackAction ApplyClassification SetSCL
RouteMessageOutboundConnector RouteMessageOutboundRequireTls ApplyOME RemoveOME GenerateIncidentReport
GenerateNotification SetAuditSeverity StopRuleProcessing ExceptIf… Priority Mode ActivationDate ExpiryDate
RuleErrorAction
"""
KINDS = """
OOF AutoForward Encrypted Calendaring PermissionControlled Voicemail Signed ApprovalRequest
ReadReceipt
"""
CELLS = [row.split(" | ", 1) for row in PAGE.splitlines() if row.startswith("| ")]
EXAMPLES = [code for _, cell in CELLS for code in re.findall("`([a-z_]+ = [^`]+)`", cell)]


@each_row("name", NAMES.split())
def test_each_name_of_exchange_has_a_row(name):
    assert [row for row, _ in CELLS if f"`{name}`" in row]


@each_row("kind", KINDS.split())
def test_each_type_of_message_has_a_row(kind):
    assert [row for row, _ in CELLS if re.search(rf"`MessageTypeMatches`.*\b{kind}\b", row)]


@each_row("code", dict.fromkeys(EXAMPLES))
def test_an_example_loads(tmp_path, code):
    key = code.partition(" ")[0]
    if key == "tls":
        return  # a key of a route
    (tmp_path / "groups").mkdir(exist_ok=True)
    for name in re.findall("group:([a-z]+)", code):
        (tmp_path / f"groups/{name}.txt").write_text("ann@example.org\n", encoding="utf-8")
    then = f"then = [ {{ {code} }} ]" if key in ACTIONS else 'then = [ { subject_prefix = "x" } ]'
    when = f"when = {{ {code} }}" if key in CONDITIONS or key in ("any", "all") else ""
    other = "" if when or key in ACTIONS else code
    (tmp_path / "10.toml").write_text(f'[[rule]]\nname = "r"\n{when}\n{then}\n{other}\n')
    assert load_rules(tmp_path).rules


@each_row("key", [*CONDITIONS, *ACTIONS])
def test_each_condition_and_action_is_named(key):
    assert f"`{key}" in PAGE
