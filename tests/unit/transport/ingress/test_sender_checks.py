"""What `enforce` answers by what is known of a message: the table of docs/strangers.md."""

from relay.base.message.authentication_results import AuthResult
from relay.transport.checks.check_child import reply_to
from relay.transport.checks.checker import TOO_MANY, CheckRequest, KnownAnswer, SenderQuestion
from relay.transport.ingress.sender_checks import CheckedSender, SenderChecks, judge
from tests.support.tables import rows_of

FAILURES = {
    "silent": KnownAnswer(failure="no answer within 3.5 s"),
    "unable": KnownAnswer(failure="too many questions of clients wait", is_own=True),
    "many": KnownAnswer(failure=TOO_MANY),
}
SPF = {"pass": "v=spf1 +all", "fail": "v=spf1 -all", "include": "v=spf1 include:i.test -all"}
SIGNATURE = b"DKIM-Signature: v=1; a=rsa-sha256; d=%b; s=s; b=YQ==; bh=YQ==; h=from\r\n"

# The author is a@x.bank.test. Of TXT, "-" is no record; also is what else there is.
# _dmarc.x.bank.test | _dmarc.bank.test | sender's domain, its SPF | d=, its key | also | answer
TABLE = """
reject | - | x.bank.test pass | x.bank.test unable | - | 250
reject | - | x.bank.test silent | - | - | 451
reject | - | x.bank.test unable | - | - | 451
reject | - | x.bank.test many | - | - | 550
reject | - | x.bank.test include | - | i.test TXT silent | 451
reject | - | x.bank.test include | - | i.test TXT many | 550
reject | - | y.x.bank.test unable | - | - | 451
reject | - | bank.test unable | - | - | 550
reject | reject | bank.test silent | - | - | 451
reject | - | y.x.bank.test pass | - | _dmarc.y.x.bank.test TXT silent | 451
reject | - | y.x.bank.test pass | - | _dmarc.y.x.bank.test TXT many | 550
reject | silent | y.bank.test pass | - | - | 451
reject | silent | evil.test pass | - | - | 550
reject | - | evil.test pass | - | _dmarc.test TXT silent | 550
reject | - | evil.test silent | - | - | 550
reject | - | evil.test unable | evil.test unable | - | 550
reject | - | evil.test fail | x.bank.test silent | - | 451
reject | - | evil.test fail | x.bank.test unable | - | 451
reject | - | evil.test fail | x.bank.test many | - | 550
reject | - | evil.test fail | x.bank.test - | - | 550
reject; adkim=s | - | evil.test fail | y.x.bank.test silent | - | 550
quarantine | - | evil.test fail | x.bank.test unable | - | 451
quarantine | - | evil.test fail | x.bank.test many | - | junk
none | - | x.bank.test unable | x.bank.test silent | - | 250
- | - | x.bank.test unable | x.bank.test silent | - | 250
silent | - | evil.test fail | - | - | 250
silent | silent | evil.test fail | - | _dmarc.test TXT silent | 250
silent | none | evil.test fail | - | - | 250
silent | reject | evil.test fail | - | - | 451
silent | reject; sp=none | evil.test fail | - | - | 250
silent | none; np=reject | evil.test fail | - | - | 451
silent | reject | x.bank.test pass | - | - | 250
silent | reject | bank.test pass | - | - | 250
silent | reject | y.bank.test pass | - | - | 451
- | silent | evil.test fail | - | - | 250
- | unable | evil.test fail | - | - | 451
unable | - | evil.test fail | - | - | 451
unable | none | evil.test fail | - | - | 451
unable | - | x.bank.test pass | - | - | 250
unable | - | evil.test pass | - | - | 451
- | none; np=reject | evil.test fail | - | x.bank.test A silent | 451
- | none; np=reject | evil.test fail | - | x.bank.test A unable | 451
- | none; np=reject | evil.test fail | - | - | 550
- | reject; np=reject | evil.test fail | - | x.bank.test A silent | 550
"""


class Zone(dict[tuple[str, str], KnownAnswer]):
    """All questions have an answer; a name that has none does not exist."""

    def __contains__(self, question: object) -> bool:
        return True

    def __missing__(self, question: tuple[str, str]) -> KnownAnswer:
        return KnownAnswer(has_name=False)


def text(stated: str, form: str = "%s") -> KnownAnswer:
    if stated == "-":
        return KnownAnswer()
    return FAILURES.get(stated) or KnownAnswer((form.encode() % stated.encode(),))


def answer_to(own: str, above: str, sender: str, signature: str, also: str) -> CheckedSender:
    (domain, spf), (signed, _, key) = sender.split(), signature.partition(" ")
    known = Zone(
        {
            (domain, "TXT"): text(SPF.get(spf, spf)),
            ("_dmarc.x.bank.test", "TXT"): text(own, "v=DMARC1; p=%s"),
            ("_dmarc.bank.test", "TXT"): text(above, "v=DMARC1; p=%s"),
            (f"s._domainkey.{signed}", "TXT"): text(key or "-"),
        }
    )
    if also != "-":
        name, kind, failure = also.split()
        known[name, kind] = FAILURES[failure]
    question = SenderQuestion("192.0.2.1", "mx.evil.test", f"a@{domain}", "relay.test")
    header = b"From: a@x.bank.test\r\n" + (SIGNATURE % signed.encode() if key else b"")
    reply = reply_to(CheckRequest(question, known, header, b"Hello.\r\n", is_large=False))
    return judge(SenderChecks(True), (), reply.results, ip="192.0.2.1", hostname="relay.test")


def test_what_is_not_known_is_answered_by_whose_inability_it_is() -> None:
    wrong = []
    for *row, expected in rows_of(TABLE):
        checked = answer_to(*row)
        answer = checked.reply[:3] or ("junk" if checked.in_junk else "250")
        if answer != expected:
            wrong.append((row, expected, answer, checked.reply, checked.results[-1]))
        assert b"unable" not in checked.field.replace(b"unable to", b"")
    assert not wrong, "\n".join(map(str, wrong))


def test_a_method_that_a_milter_reports_defers_nothing() -> None:
    unable = tuple([AuthResult(method, "unable") for method in ("spf", "dkim", "dmarc")])
    for by_milter, code in ((), "451"), ((AuthResult("dmarc", "temperror"),), ""):
        checked = judge(SenderChecks(True), by_milter, unable, ip="192.0.2.1", hostname="r.test")
        assert checked.reply[:3] == code
        assert not judge(SenderChecks(), by_milter, unable, ip="192.0.2.1", hostname="r.test").reply


def test_a_reply_with_a_reason_beyond_ascii_has_at_most_512_octets() -> None:
    """RFC 5321 4.5.3.1.5: a reason has up to 200 letters, and a milter may have written it."""
    refused = AuthResult(
        "dmarc", "fail", "ж" * 200, {"header.from": "a.test", "policy.dmarc": "reject"}
    )
    checked = judge(SenderChecks(True), (refused,), (), ip="192.0.2.1", hostname="r.test")
    assert checked.reply.startswith("550 5.7.26 ")
    assert checked.reply.isascii()
    assert len(checked.reply) <= 510
