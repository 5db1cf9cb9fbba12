"""A domain with U-labels and the same with A-labels: whatever takes an address decides alike."""

import re
from pathlib import Path

import idna
import pytest
import uvloop
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from relay.base.accounts.accounts_file import load_accounts
from relay.base.message.address import shown_address
from relay.base.message.envelope import Source
from relay.base.message.header import Header, ParsedContent
from relay.base.message.srs import Srs
from relay.base.observe.metrics import Metrics
from relay.base.settings.tree import Route
from relay.base.settings.values import parse_domain, parse_domain_pattern, parse_sender_pattern
from relay.front_door.api.explain import read_question
from relay.front_door.graph.odata.resources import message_condition, select_users
from relay.front_door.graph.odata.search import search_condition
from relay.front_door.graph.query_options import QueryOptions
from relay.store.journeys.message_list import MessageSearch
from relay.transport.ingress.esmtp_parameters import parse_mail, parse_rcpt
from relay.transport.ingress.send_as import header_rejection
from relay.transport.policy.rule_files import read_rules
from relay.transport.policy.rule_tests import examined_message
from relay.transport.routing.route_table import RouteTable
from relay.transport.signing.keys import KeyRing, SigningKey
from relay.transport.signing.private_keys import new_key
from relay.transport.signing.signer import Signer
from tests.support.manual_clock import ManualClock

KEY = new_key("ed25519")
SCRIPTS = [
    "abcdefghijklmnopqrstuvwxyzäöüßéñçåø",
    "αβγδεζηθικλμνξοπρςστυφχψωάή",
    "абвгдежзийклмнопя",
    "例子书店テストひらがな한국어",
]


@st.composite
def domains(draw: st.DrawFn) -> tuple[str, str]:
    """The two forms of a domain."""
    labels = st.one_of(*[st.text(letters, min_size=1, max_size=12) for letters in SCRIPTS])
    shown = ".".join(draw(st.lists(labels, min_size=1, max_size=3))) + ".test"
    try:
        written = idna.encode(shown, uts46=True).decode()
    except idna.IDNAError:
        written = shown
    assume(not shown.isascii() and written.isascii() and written != shown)
    return shown, written


def alike(decide, forms: tuple[str, str]):
    """What is decided about both forms, which must be the same."""
    first, second = map(decide, forms)
    assert first == second
    return first


@given(domains())
def test_paths_and_configuration_have_a_labels(forms: tuple[str, str]) -> None:
    shown, written = forms
    assert shown_address(f"a@{written}") == f"a@{shown}"
    for one in forms:
        assert parse_rcpt(f"TO:<A@{one}>", extended=True, smtputf8=False).address == f"A@{written}"
        assert (
            parse_mail(f"FROM:<@x.test:A@{one}>", extended=False).envelope.reverse_path
            == f"A@{written}"
        )
        assert parse_domain(one.upper() if one.isascii() else one) == written
        assert parse_domain_pattern(f"*.{one}") == f"*.{written}"
        assert parse_sender_pattern(f"*@*.{one}") == f"*@*.{written}"
        assert parse_sender_pattern(f"A@{one}") == f"a@{written}"


ACCOUNTS = """
[[account]]
address = "ann@HERE"
aliases = ["al@HERE"]
password = "plain:a long password"
send_as = ["*@OTHER", "x@other.test"]
[[alias]]
address = "team@HERE"
to = ["ann@HERE", "bob@OTHER"]
"""


@settings(max_examples=30)
@given(domains(), domains(), st.sampled_from([0, 1]))
def test_accounts_logins_aliases_and_routes(tmp_path_factory, here, other, form) -> None:
    assume(here[1] != other[1])
    file = tmp_path_factory.mktemp("accounts") / "accounts.toml"
    file.write_text(ACCOUNTS.replace("HERE", here[form]).replace("OTHER", other[1 - form]))
    file.chmod(0o600)
    accounts = load_accounts(file, (here[1],), clock=ManualClock(), environ={})
    ann = accounts.by_address(f"ann@{here[1]}")
    assert alike(lambda one: accounts.by_address(f"AL+tag@{one}"), here) is ann
    assert ann.address == f"ann@{here[1]}"
    assert alike(
        lambda one: uvloop.run(accounts.by_password(f"Ann@{one}", "a long password", client="")),
        here,
    )
    assert alike(lambda one: accounts.opened(f"ann@{one}", ann), here) is ann  # a path of Graph
    assert alike(lambda one: accounts.expand(f"team@{one}"), here).addresses == (
        f"ann@{here[1]}",
        f"bob@{other[1]}",
    )
    assert alike(lambda one: ann.may_send_as(f"x@{one}"), here) is False
    assert alike(lambda one: ann.may_send_as(f"x@{one}"), other) is True
    for local_part, reply in (("al", ""), ("bob", "553")):
        content = "From: x <" + local_part + "@{}>\r\n"
        header = [Header.parse(content.format(one).encode()) for one in here]
        assert {header_rejection(accounts, ann.address, one)[:3] for one in header} == {reply}
    for one in here:
        options = QueryOptions(filter=f"mail eq 'Ann@{one}'", search=f'"mail:ann@{one}"')
        (found,) = select_users([ann], options)
        assert found is ann

    table = RouteTable(
        [Route(f"*.{other[1]}", "reject:5.7.1 closed", sender="*@" + here[1])], [here[1]], accounts
    )
    assert alike(lambda one: table.examine(f"al@{one}"), here).mailbox == ann.address
    assert alike(lambda one: table.examine(f"x@{one}"), other).next_hop.host == other[1]
    assert alike(lambda one: table.examine(f"x@sub.{one}", f"y@{here[1]}").status, other) == "5.7.1"
    assert alike(lambda one: table.examine(f"x@sub.{other[1]}", f"y@{one}").status, here) == "5.7.1"


RULE = """
[[rule]]
name = "r"
when = { KEY = GLOB }
then = [ { reject = "5.7.1 no" } ]
"""


@settings(max_examples=30)
@given(domains(), st.sampled_from([0, 1]))
def test_rules(tmp_path_factory, forms, form) -> None:
    one, other = forms[form], forms[1 - form]
    folder = tmp_path_factory.mktemp("rules")
    (folder / "groups").mkdir()
    (folder / "groups" / "g.txt").write_text(f"{one}\n")
    all_globs = [f"*@{one}", f"a@{one}", f"*.{one}", f"*@*.{one}", "group:g"]
    all_globs += ["*@xn--*", "*@*.xn--*"] if forms[1].startswith("xn--") else []
    for globs in all_globs:
        for key in ("sender", "recipient"):
            (folder / "1.toml").write_text(RULE.replace("KEY", key).replace("GLOB", f"'{globs}'"))
            rules = read_rules(folder)

            def hits(domain: str, key: str = key, rules=rules) -> bool:
                sender, to = (
                    ("a@x.test", f"a@{domain}")
                    if key == "recipient"
                    else (f"a@{domain}", "b@x.test")
                )
                mail = examined_message(sender, [to], b"\r\n", source=Source.SMTP, local_domains=())
                return bool(rules.evaluate(mail).hits)

            is_sub = "*." in globs
            assert alike(hits, tuple(f"sub.{each}" if is_sub else each for each in forms)), globs
            assert not hits("x.test")
    content = f"From: x <a@{other}>\r\n\r\n".encode()
    mail = examined_message("", ["b@x.test"], content, source=Source.SMTP, local_domains=())
    for test in (f"matches = '*@{one}>'", f"pattern = '@{re.escape(one)}>'"):
        header = f"{{ name = 'From', {test} }}"
        (folder / "1.toml").write_text(RULE.replace("KEY", "header").replace("GLOB", header))
        assert read_rules(folder).evaluate(mail).hits


@pytest.mark.parametrize("globs", ["*@büch*", "*bücher.test", "*@*ücher.test", "?ü.test"])
def test_a_glob_with_a_part_of_a_label_beyond_ascii_is_a_fault(tmp_path: Path, globs: str) -> None:
    (tmp_path / "1.toml").write_text(RULE.replace("KEY", "sender").replace("GLOB", f"'{globs}'"))
    with pytest.raises(Exception, match="whole labels beyond ASCII"):
        read_rules(tmp_path)


@given(domains())
def test_searches_signatures_and_srs(forms: tuple[str, str]) -> None:
    shown, written = forms
    for stored in forms:  # history keeps its text
        for wanted in (f"a@{shown}", f"A@{written}", f"*@{shown}", "a@xn--*"):
            pairs = [(f"a@{stored}", "queued")]
            if wanted != "a@xn--*" or written.startswith("xn--"):
                assert MessageSearch(to=wanted).matches_all("", "", pairs)
                assert MessageSearch(sender=wanted).matches_facts(f"a@{stored}", "")
            assert MessageSearch(words=(f"A@{shown}", written), mailbox=f"a@{shown}").matches_all(
                "", "", pairs
            )
            assert not MessageSearch(to=wanted).matches_all("", "", [("a@other.test", "queued")])
    for clause in (
        "from/emailAddress/address eq 'a@{}'",
        "contains(sender/emailAddress/address, '@{}')",
        "toRecipients/any(r:endswith(r/emailAddress/address, '@{}'))",
    ):
        alike(lambda one, clause=clause: message_condition(clause.format(one)), forms)
    alike(lambda one: search_condition(f'"from:a@{one}"', now_us=0), forms)
    alike(lambda one: read_question({"address": f"a@{one}", "from": f"b@{one}"}, None), forms)

    ring = KeyRing([SigningKey(written, "s", KEY, Path("x"), None)])
    signer = Signer(lambda: ring, clock=ManualClock(), metrics=Metrics())

    def keys(one: str) -> list:
        return signer.sign_report(ParsedContent.of(f"From: a@sub.{one}\r\n\r\nx\r\n".encode())).keys

    assert len(alike(keys, forms)) == 1
    if len(written) > 100:  # twice in a path that may have 254 octets
        return
    srs = Srs(b"a key of 16 bytes")
    address = alike(lambda one: srs.rewritten(f"a@{one}", one, now_us=0), forms)
    assert address.endswith(f"@{written}")
    local_part = address.rpartition("@")[0]
    assert alike(lambda one: srs.original(f"{local_part}@{one}", now_us=0), forms) == f"a@{written}"
