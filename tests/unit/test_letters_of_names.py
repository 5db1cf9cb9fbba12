"""A letter beyond ASCII never stands for one of ASCII: whatever compares names decides alike."""

import re
import sys
from pathlib import Path

import uvloop

from relay.base.accounts.accounts_file import load_accounts
from relay.base.message.address import lower_case, own_mailbox
from relay.base.message.envelope import Source
from relay.base.message.properties import EmailAddress, MessageProperties
from relay.base.settings.tree import Route
from relay.formats.convert import convert
from relay.formats.draft import DraftOrigin
from relay.store.journeys.message_list import MessageSearch
from relay.store.spool.shared.entry_selection import like
from relay.transport.ingress.local_users import LocalUser
from relay.transport.policy.rule_files import read_rules
from relay.transport.policy.rule_tests import examined_message
from relay.transport.routing.route_table import RouteTable
from tests.support.drafts import write_draft
from tests.support.manual_clock import ManualClock
from tests.support.relay_process import ROOT
from tests.support.tables import each_row

# a name; another one; whether they name the same
NAMES = [
    ("mike", "MIKE", True),
    ("mike", "mi\N{KELVIN SIGN}e", False),
    ("susan", "\N{LATIN SMALL LETTER LONG S}usan", False),
    ("joss", "joß", False),
    ("ines", "\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}nes", False),
    ("fine", "\N{LATIN SMALL LIGATURE FI}ne", False),
    ("änne", "ÄNNE", True),
    ("straße", "STRA\N{LATIN CAPITAL LETTER SHARP S}E", True),
]
each_name = each_row("known, other, is_one", NAMES)


def test_no_letter_of_unicode_becomes_ascii_and_no_other_changes() -> None:
    for letter in map(chr, range(sys.maxunicode + 1)):
        lowered = lower_case(letter)
        assert re.search("[a-z]", lowered) is None or letter.isascii(), ascii(letter)
        assert lowered in (letter, letter.lower())
    assert own_mailbox("ΝΊΚΟΣ@A.test") == "νίκος@a.test"  # as mailboxes are named since ever
    assert own_mailbox("mi\N{KELVIN SIGN}e") == "mi\N{KELVIN SIGN}e"
    assert own_mailbox("mike@\N{KELVIN SIGN}.test") == "mike@k.test"  # IDNA


def test_only_searches_of_texts_and_labels_fold_letters() -> None:
    """casefold() takes ß for ss: names are compared by lower_case() and own_mailbox()."""
    texts = {
        "base/message/time_zones.py",
        "development/mailpit.py",
        "development/search_index.py",
        "formats/disclaimer.py",
        "front_door/graph/odata/resources.py",
        "store/journeys/message_list.py",
        "store/mailbox/folders.py",
        "store/mailbox/index/query_sql.py",
    }
    files = [file for file in (ROOT / "relay").rglob("*.py") if "casefold" in file.read_text()]
    assert {str(file.relative_to(ROOT / "relay")) for file in files} == texts


ACCOUNTS = """
[[account]]
address = "KNOWN@here.test"
password = "plain:a long password"
"""


@each_name
def test_logins_senders_recipients_and_routes(known, other, is_one, tmp_path: Path) -> None:
    file = tmp_path / f"{known}.toml"
    file.write_text(ACCOUNTS.replace("KNOWN", known))
    file.chmod(0o600)
    accounts = load_accounts(file, ("here.test",), clock=ManualClock(), environ={})
    account = accounts.by_address(f"{known}@here.test")
    address = f"{other}@here.test"
    decided = [
        accounts.by_address(address) is account,
        uvloop.run(accounts.by_password(address, "a long password", client="")) is account,
        account.may_send_as(address),
        LocalUser("x", f"{known}@here.test").may_send_as(address),
    ]
    rejects = Route("*", "reject:5.7.1 closed", recipient=f"{known}@there.test")
    table = RouteTable([rejects], ["here.test"], accounts)
    decided.append(getattr(table.examine(f"{other}@there.test"), "status", "") == "5.7.1")
    assert decided == [is_one] * len(decided)


RULE = """
[[rule]]
name = "r"
when = { KEY = ["NAME"] }
then = [ { reject = "5.7.1 no" } ]
"""


@each_name
def test_rules_groups_and_searches(known, other, is_one, tmp_path: Path) -> None:
    mail = examined_message(
        f"{other}@a.test",
        [f"{other}@a.test"],
        f"From: {other}@a.test\r\nSubject: {other}\r\n\r\n{other}\r\n".encode(),
        source=Source.SMTP,
        local_domains=(),
    )
    (tmp_path / "groups").mkdir(exist_ok=True)
    (tmp_path / "groups" / "g.txt").write_text(f"{known}@a.test\n")
    for key in ("sender", "recipient", "header_from"):
        for name in (f"{known}@*", f"{known[:2]}*{known[2:]}@a.test", "group:g"):
            (tmp_path / "1.toml").write_text(RULE.replace("KEY", key).replace("NAME", name))
            assert bool(read_rules(tmp_path).evaluate(mail).hits) is is_one, (key, name)
    (tmp_path / "1.toml").write_text(RULE.replace("KEY", "subject").replace("NAME", known))
    assert bool(read_rules(tmp_path).evaluate(mail).hits) is is_one
    pairs = [(f"{other}@a.test", "queued")]
    assert MessageSearch(to=f"{known}@*").matches_all("", "", pairs) is is_one
    assert (like(known) == like(other)) is is_one  # selectors of the queue


@each_name
def test_recipients_of_a_draft(known, other, is_one) -> None:
    people = tuple(EmailAddress(f"{name}@a.test") for name in (known, other))
    origin = DraftOrigin("x@a.test", "1.h", "<id@h>", 0, 0)
    stored = write_draft(MessageProperties(to=people[:1], cc=people[1:]), origin)
    made = convert(stored, now_us=0, hostname="h")
    assert len(made.recipients) == (1 if is_one else 2)
