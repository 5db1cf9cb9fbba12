"""The rules of tenants: their order, what they see, and what they may do to a message."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from relay.base.message.content import read_all
from relay.base.message.envelope import Source
from relay.base.message.verdict import VerdictAction
from relay.transport.policy import engine, message_view
from relay.transport.policy.message_parts import TooManyPartsError, message_parts
from relay.transport.policy.rule_book import RuleBook, TenantRules
from relay.transport.policy.rule_files import read_rules
from relay.transport.policy.rule_tests import examined_message
from tests.support.rule_sets import evaluated
from tests.support.tables import each_row
from tests.unit.transport.policy.conftest import MAIL, rule

OWN = ("acme.test", "globex.test", "own.test")
DELIVER, REJECT, REDIRECT = VerdictAction.DELIVER, VerdictAction.REJECT, VerdictAction.REDIRECT
TAG = "{{ subject_prefix = '{}' }}".format
MANY_PARTS = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"--b\r\n\r\n\r\n" * 20_000
BODY = "{ body = { words = 'x' } }"


@pytest.fixture
def book(tmp_path):
    """Rules by the name of a file or tenant; the names of tenants' rules get their prefix."""

    def book(**texts: str | None) -> RuleBook:
        def read(folder: Path, *files: tuple[str, str]):
            folder.mkdir(exist_ok=True)
            for name, text in files:
                (folder / name).write_text(text)
            return read_rules(folder)

        operator = [(f"{n}.toml", texts[k]) for k, n in (("early", 10), ("late", 50)) if k in texts]
        tenants = {}
        for name in ("acme", "globex"):
            if (text := texts.get(name, "")) is not None:
                text = text.replace("name = '", f"name = '{name}/")
                rules = read(tmp_path / name, ("10.toml", text))
            else:
                rules = None
            tenants[name] = TenantRules(name, frozenset([f"{name}.test"]), rules)
        return RuleBook(read(tmp_path / "operator", *operator), tenants)

    return book


def mail(sender="x@far.test", to=("a@acme.test", "b@globex.test"), content=MAIL, **session):
    session = {"client": "192.0.2.1", "is_trusted": False} | session
    return examined_message(
        sender, to, content, source=Source.SMTP, local_domains=set(OWN), **session
    )


def trusted(sender, *to, **more):
    return mail(sender, to, is_trusted=True, **more)


def subjects(verdict) -> dict[str, str]:
    contents = [read_all(each.joined()) for each in verdict.contents]
    lines = [
        next(one for one in each.split(b"\r\n") if one.startswith(b"Subject:")) for each in contents
    ]
    found = [*verdict.recipients, *verdict.additions]
    return {each.address: lines[each.content][9:].decode() for each in found}


SETS = {name: rule(TAG(name), name=name) for name in ("early", "acme", "globex", "late")}
A, B, Z = "a@acme.test", "b@globex.test", "o@far.test"
ORDERS = {
    "inbound": (
        mail(to=(A, B, Z)),
        {A: "late acme early hello", B: "late globex early hello", Z: "late early hello"},
    ),
    "between two": (
        trusted(A, B, Z),
        {B: "late globex acme early hello", Z: "late acme early hello"},
    ),
    "inside": (trusted(A, "c@acme.test"), {"c@acme.test": "late acme early hello"}),
    "a login": (trusted("", B, login=A), {B: "late globex acme early hello"}),
    "a foreign sender of a login": (
        trusted("x@far.test", Z, login=A),
        {Z: "late acme early hello"},
    ),
    "an own domain of no tenant, with a login": (
        replace(trusted("x@far.test", Z, login=A), sender_local=True),
        {Z: "late acme early hello"},
    ),
    "a stranger in its name": (mail(A, (Z,)), {Z: "late early hello"}),
}


@each_row("message, expected", ORDERS.values())
def test_the_order(book, message, expected) -> None:
    assert subjects(evaluated(book(**SETS), message)) == expected


def test_quarantine_of_the_operator_is_final_and_that_of_a_tenant_is_for_its_own_rules(book):
    junk = rule("{ quarantine = true }", name="junk")
    rules = book(
        early=junk, acme=rule("{ redirect = 'e@acme.test' }"), late=rule("{ reject = '5.7.1 no' }")
    )
    verdict = evaluated(rules, mail(to=(A, Z)))
    assert [hit.rule for hit in verdict.hits] == ["junk"]
    assert all(one.quarantined == "Junk Email" for one in verdict.recipients)
    hits = evaluated(book(early="", late="", acme=junk, globex=rule(TAG("x"))), trusted(A, B)).hits
    assert [hit.rule for hit in hits] == ["acme/junk", "globex/r"]


SEEN = {
    "its recipients": (mail(to=(A, "c@acme.test", B)), "{ recipients_over = 1 }", "2"),
    "not those of others": (mail(to=(A, B)), "{ recipients_over = 1 }", None),
    "all of its own mail": (trusted(A, B, Z), "{ recipients_over = 1 }", "2"),
    "others are outside": (trusted(A, B), "{ direction = 'outbound' }", "outbound"),
    "inside": (trusted(A, "c@acme.test"), "{ direction = 'internal' }", "internal"),
    "from another tenant": (trusted(B, A), "{ direction = 'inbound' }", "inbound"),
    "its own group": (trusted(B, A), "{ sender = 'group:own' }", None),
    "the same": (trusted(A, B), "{ sender = 'group:own' }", A),
}


@each_row("message, when, value", SEEN.values())
def test_what_a_tenant_sees(book, message, when, value) -> None:
    hits = evaluated(book(acme=rule(TAG("x"), when=when)), message).hits
    assert [one.because[0].value for one in hits] == ([value] if value else [])
    assert all(hit.rule == "acme/r" for hit in hits)


def fate(verdict, address=A) -> tuple:
    [one] = [each for each in verdict.recipients if each.address == address]
    return one.action, one.hold.reason if one.hold else one.status


LATER = "deferred by acme/r: later"
GONE = "The mail rules of acme.test are not available, try again later"
DEFER = rule("{ defer = '4.7.1 later' }")
RULES = {
    "defers": (DEFER, MAIL, (DELIVER, LATER), "acme/r"),
    "redirected before": (
        rule("{ redirect = 'c@acme.test' }", name="q") + DEFER,
        MAIL,
        (REDIRECT, ""),
        "acme/r",
    ),
    "a bcc before": (
        rule("{ bcc = 'c@acme.test' }", name="q") + DEFER,
        MAIL,
        (DELIVER, LATER),
        "acme/r",
    ),
    "none": (None, MAIL, (DELIVER, f"deferred by acme/*: {GONE}"), "acme/*"),
    "too many parts": (rule(TAG("x"), when=BODY), MANY_PARTS, (REJECT, "5.6.0"), TooManyPartsError),
    "rejects": (rule("{ reject = '5.7.1 no' }"), MAIL, (REJECT, "5.7.1"), None),
}


@each_row("case", RULES.values())
def test_who_waits_for_a_recipients_tenant(book, case) -> None:
    text, content, expected, deferred = case
    rules = book(acme=text, late=rule(TAG("late"), name="late"))
    verdict = evaluated(rules, mail(to=(A, B), content=content))
    assert verdict.deferred is None
    assert fate(verdict) == expected
    assert fate(verdict, B) == (DELIVER, "")
    if content is MAIL:
        assert subjects(verdict)[B] == "late hello"
    assert all(one.hold for one in verdict.additions) or expected[0] is REDIRECT
    if isinstance(deferred, type):
        with pytest.raises(deferred):
            evaluated(rules, mail(to=(A,), content=content))
    else:
        whole = evaluated(rules, mail(to=(A, "c@acme.test"))).deferred
        assert (whole.rule if whole else None) == deferred


@pytest.mark.parametrize("text", [DEFER, None], ids=["defers", "none"])
def test_all_recipients_wait_for_the_senders_tenant(book, text) -> None:
    deferred = evaluated(book(acme=text), trusted(A, B, Z)).deferred
    assert (deferred.status, deferred.text) == (("4.7.1", "later") if text else ("4.3.0", GONE))


def test_stop_and_set_sender_end_at_the_tenant(book) -> None:
    texts = SETS | {"acme": rule("{ set_sender = 's@acme.test' }", stop="true") + SETS["acme"]}
    verdict = evaluated(book(**texts), mail())
    assert (subjects(verdict)[A], verdict.sender) == ("late early hello", "")
    assert verdict.hits[1].because[-1].condition == "set_sender"
    own = evaluated(book(**texts), trusted(A, B))
    assert (subjects(own)[B], own.sender) == ("late globex early hello", "s@acme.test")
    texts["early"] = rule(TAG("early"), name="early", stop="true")
    assert subjects(evaluated(book(**texts), mail())) == {A: "early hello", B: "early hello"}


def many_tenants(folder: Path, then: str, names: list[str]) -> RuleBook:
    """Tenants with one rule each, whose action names them."""
    tenants = {}
    for name in names:
        (folder / "a.toml").write_text(rule(then.format(name), name=f"{name}/r"))
        tenants[name] = TenantRules(name, frozenset([f"{name}.test"]), read_rules(folder))
    return RuleBook(tenants=tenants)


def test_many_contents_of_tenants_do_not_take_all_memory(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(engine, "CONTENTS_OCTETS_MAX", 3 * len(MAIL) + 20)
    rules = many_tenants(tmp_path, "{{ subject_prefix = '{}' }}", ["a", "b", "c", "d", "e"])
    verdict = evaluated(rules, mail(to=[f"x@{name}.test" for name in "abcde"] + [Z]))
    held = {each.address for each in verdict.recipients if each.hold}
    assert held == {"x@d.test", "x@e.test"}
    alone = evaluated(rules, mail(to=["x@e.test"]))
    assert not alone.deferred


def test_a_tenant_may_take_half_of_the_time_that_is_left(book, monkeypatch) -> None:
    now_s, times = [0.0], [1, 0]

    def parts(content, between_parts, **_):
        now_s[0] += 6
        between_parts()
        return message_parts(content, between_parts)

    monkeypatch.setattr(engine._clock, "real_s", lambda: times[0] * now_s[0] - times[1])
    monkeypatch.setattr(message_view, "message_parts", parts)
    slow = rule(TAG("x"), when=BODY)
    content = MAIL + b"x" * 100
    for to, is_late in ((A, B), True), ((A, B, Z), True), ((A,), False):
        now_s[0] = 0
        rules = book(acme=slow, globex=rule("{ disclaimer = { text = 'x' } }"))
        evaluation = rules.begin(mail(to=to, content=content))
        assert evaluation.run(in_thread=True, time_s=10)
        first, *others = evaluation.verdict().recipients
        assert (first.hold is not None) is is_late
        assert not any(each.hold for each in others)
    # a quarter of the time is left for the rules of the operator
    early = rule(TAG("x"), when=BODY, name="slow")
    evaluation = book(early=early, acme=rule("{ disclaimer = { text = 'x' } }")).begin(
        mail(to=(A, B), content=content)
    )
    now_s[0] = 2
    times[:] = 2, 4
    assert evaluation.run(in_thread=True, time_s=10)
    assert [each.hold is None for each in evaluation.verdict().recipients] == [False, True]


@pytest.mark.parametrize("fits", [True, False])
def test_many_tenants_and_many_actions_are_not_carried_out_on_the_loop(tmp_path, fits) -> None:
    of_each = engine.ACTIONS_ON_LOOP_MAX // 2 - fits
    actions = "{{ subject_prefix = '{}' }}" + ", {{ hold = 'x' }}" * (of_each - 1)
    names = [f"t{number}" for number in range(3 if fits else engine.SCOPES_ON_LOOP_MAX)]
    for then, tenants in ((actions, names[:2]), ("{{ subject_prefix = '{}' }}", names)):
        rules = many_tenants(tmp_path, then, tenants)
        evaluation = rules.begin(mail(to=[f"x@{name}.test" for name in tenants]))
        assert evaluation.run(in_thread=False) is fits
        assert evaluation.run(in_thread=True)
        assert subjects(evaluation.verdict()) == {
            f"x@{one}.test": f"{one} hello" for one in tenants
        }
