"""The texts of reports: those of this relay, and the templates of an operator."""

import html
import re
from pathlib import Path

import pytest
from msgspec import structs

from relay.base.message.envelope import ForwardPath
from relay.base.message.header import Header
from relay.base.message.outcome import Evidence, Peer
from relay.base.message.receipt import ReceiptKind, ReceiptRequest
from relay.base.settings.document import SettingsError
from relay.base.settings.tree import ReportsSettings
from relay.delivery.graph.outcomes import outcome_of
from relay.delivery.http_connection import HttpResponse
from relay.delivery.reports import texts
from relay.delivery.reports.texts import LANGUAGES, ReportTexts, load_texts
from relay.delivery.reports.wording import FailureClass, RecipientFields
from relay.formats.dsn import HumanPart, Report, ReportedRecipient, ReportKind
from relay.formats.mdn import Receipt
from tests.support.logs import capture_logs
from tests.support.sample_reports import DELAYED, EVERY_CLASS, FULL, MESSAGE
from tests.support.tables import each_row

DOCS = Path(__file__).parents[4] / "docs/reports.md"
HEADER = Header.parse(b"Subject: Lunch\r\nMessage-ID: <m@x.test>\r\n")
RECEIPT = ReceiptRequest(
    "bob@example.net",
    "alice@example.com",
    "bob@example.net",
    message_id="<m@x.test>",
    subject="Lunch",
)
ALL_KINDS = (*ReportKind, *ReceiptKind)
HOSTILE = "<script>\"'&amp;</p><img src=http://evil.test/x>{{ 7*7 }}"


def written(
    recipients=(FULL,), kind=ReportKind.FAILED, header=HEADER, *, using=None, message=MESSAGE, **of
) -> HumanPart:
    using = using or ReportTexts()
    return using.write(Report(kind, message, recipients, "relay.test"), header, **of)


def receipt(kind=ReceiptKind.READ, language="", *, using=None, **changes) -> HumanPart:
    about, using = structs.replace(RECEIPT, **changes), using or ReportTexts()
    now_us, queue_id = MESSAGE.received_us, MESSAGE.id
    return using.receipt(Receipt(kind, about, "relay.test", now_us, queue_id), language)


def of_kind(kind, language) -> HumanPart:
    """A report or a read receipt with all that it can say."""
    if isinstance(kind, ReceiptKind):
        return receipt(kind, language)
    message = structs.replace(MESSAGE, expires_us=MESSAGE.received_us + 1_000_000)
    return written(EVERY_CLASS, kind, message=message, language=language)


@pytest.fixture
def load(tmp_path):
    """Load texts from files of these names, with "/" for "-"."""

    def load(files: dict[str, str], language: str = "en") -> ReportTexts:
        for name, text in files.items():
            file = tmp_path / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
        return load_texts(ReportsSettings(language=language, templates=tmp_path))

    return load


@pytest.fixture
def faults(load, tmp_path):
    """The faults of these files, without the folder."""

    def faults(files: dict[str, str]) -> list[str]:
        with pytest.raises(SettingsError) as caught:
            load(files)
        return [str(one).removeprefix(f"{tmp_path}/") for one in caught.value.faults]

    return faults


# -- the texts of this relay
@pytest.mark.parametrize("language", LANGUAGES)
def test_each_class_says_why_and_what_to_do(language):
    own = texts._own_texts(language)
    one = RecipientFields("a@b.test", "b.test", "", "", "", "", "the text", "", "")
    for kind in FailureClass:
        for detail in (
            "0.0",
            "1.0",
            "1.3",
            "1.8",
            "1.10",
            "2.1",
            "2.3",
            "3.0",
            "4.1",
            "4.2",
            "4.3",
            "4.4",
            "5.0",
            "5.3",
            "6.3",
            "6.7",
            "7.8",
        ):
            said = getattr(own, kind)(structs.replace(one, detail=detail), "b.test", "relay.test")
            why, _, advice = said.strip().partition("\n")
            assert why.endswith((".", "the text")), (kind, detail, said)
            assert advice.endswith("."), (kind, detail, said)
            assert "\n" not in advice, (kind, detail, said)


def refused(answer: str) -> ReportedRecipient:
    """A recipient as "STATUS CODE MESSAGE" of Graph ends it: at once, or when its time is over."""
    status, code, message = answer.split(" ", 2)
    body = b'{"error": {"code": "%b", "message": "%b"}}' % (code.encode(), message.encode())
    evidence = outcome_of(HttpResponse(int(status), {}, body), Peer("graph.test")).evidence
    last = evidence.status
    if last[0] == "4":
        evidence = Evidence("5.4.7", f"delivery time expired; last: {evidence.reply}")
    return ReportedRecipient(ForwardPath("ann@partner.example"), evidence, last_status=last)


TOO_LARGE = "400 ErrorMessageSizeExceeded"


@each_row(
    "answer, english, german",
    [
        (f"{TOO_LARGE} > 25 MB", "send at most 25 MB. Send it in parts", "höchstens 25 MB senden"),
        (f"{TOO_LARGE} 41 MB > 25 MB", "no message of this size. Send", "keine Nachricht dieser"),
        ("413 TooLarge ", "found the message too large. Send it", "fand die Nachricht zu groß."),
        ("200  ", "found the message too large. Send it in parts", "fand die Nachricht zu groß."),
        ("403 ErrorSendAsDenied ", "under your address. Set the device's", "Ihrer Adresse senden."),
        ("400 ErrorInvalidRecipients ", "take this address. Check", "nimmt diese Adresse nicht"),
        ("413 ErrorQuotaExceeded ", "no room left in the mailbox that sends. Del", "keinen Platz"),
        ("403 ErrorUnheardOf ", "mail system has not seen it. Delivery was", "nicht gesehen. Die"),
    ],
)
def test_the_first_sentence_says_that_graph_refused_and_what_to_do(answer, english, german):
    scan, header = structs.replace(MESSAGE, size=31 * 2**20), Header.parse(b"Subject: scan\r\n")
    for language, begins, said in (
        ("en", '"scan" (31 MB) was not sent to ann@partner.example: Micros', english),
        ("de", "„scan“ (31 MB) wurde nicht an ann@partner.example gesendet: Micros", german),
    ):
        part = written([refused(answer)], header=header, message=scan, language=language)
        first, _, rest = part.text.partition("\n")
        assert (first.startswith(begins), said in first, said in rest) == (True, True, False)
        assert f">{first}</h1>" in html.unescape(part.html)


def test_the_first_sentence_is_about_a_failure_of_all_recipients():
    one, other = refused("413  "), refused("403 ErrorSendAsDenied ")
    several = written([one, one], header=Header.parse(b"")).text
    assert several.startswith("Your message was not sent to these recipients: Microsoft 365 found")
    for language, plural in (("en", "take these addresses."), ("de", "nimmt diese Adressen nicht")):
        several = written([refused("400 ErrorInvalidRecipients ")] * 2, language=language).text
        assert plural in several.partition("\n")[0]
    assert "is delayed for" in written([one], ReportKind.DELAYED).text.partition("\n")[0]
    evidence = Evidence("5.7.1", "550 5.7.1 No games")
    by_rule = ReportedRecipient(ForwardPath("ann@partner.example"), evidence, rule="games")
    first = written([by_rule]).text.partition("\n")[0]
    assert " refused the message: No games. Change the message as the rule demands" in first
    for mixed in (written([one, FULL]).text, written([one, other]).text):
        assert mixed.startswith("Your message was not delivered to these recipients:\n")


def test_languages_have_the_same_words():
    english, german = map(texts._own_texts, ("en", "de"))
    assert english.words.keys() == german.words.keys()
    assert english.openings.keys() == german.openings.keys() == set(ReportKind)
    assert english.receipts.keys() == german.receipts.keys() == set(ReceiptKind)
    for name, text in english.words.items():
        assert re.findall("%.", text) == re.findall("%.", german.words[name])


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_the_text_says_what_the_html_says(kind, language):
    part = of_kind(kind, language)
    body = re.sub(r"<head>.*</head>|<[^>]*>", " ", part.html, flags=re.DOTALL)
    said = part.text.replace(":\n", "\n", 1)  # the colon of the opening
    assert html.unescape(body).split() == said.split()


def test_what_comes_from_outside_is_no_markup_and_adds_no_line():
    evil = ReportedRecipient(
        ForwardPath(f'"{HOSTILE}\n"@x.test'),
        Evidence("5.7.1", f"550 5.7.1 {HOSTILE}\r\nSubject: x", f"{HOSTILE}\n", remote=True),
        rule=f"{HOSTILE}\n",
    )
    header = Header.parse(f"Subject: {HOSTILE}\r\nMessage-ID: <{HOSTILE}@x>\r\n".encode())
    harmless = ReportedRecipient(
        ForwardPath("a@x.test"), Evidence("5.7.1", "550 5.7.1 spam", "h", remote=True), rule="r"
    )
    part, plain = written([evil], header=header), written([harmless])
    tags = re.compile(r"<[^>]*>")
    assert tags.findall(part.html) == tags.findall(plain.html)
    assert "{{ 7*7 }}" in part.html
    assert "{{ 7*7 }}" in part.text
    assert len(part.text.splitlines()) == len(plain.text.splitlines())
    evil, plain = receipt(subject=f"{HOSTILE}\r\nx", recipient=f'"{HOSTILE}\n"@x.test'), receipt()
    assert tags.findall(evil.html) == tags.findall(plain.html)
    assert len(evil.text.splitlines()) == len(plain.text.splitlines())


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_the_html_loads_nothing(kind, language):
    part = of_kind(kind, language)
    assert not re.search(r"\b(?:src|href|url|background|action)\b\s*[=(]", part.html)
    assert not re.search(r"<(?:img|link|script|style|iframe|a|form|object|base)\b", part.html)


# -- the language
def test_the_reader_goes_before_the_message_and_that_before_the_setting():
    german = Header.parse(b"Accept-Language: de-AT\r\n")
    english = Header.parse(b"Accept-Language: en\r\n")
    default = ReportTexts(language="de")
    assert written(header=german).language == "de"
    assert written(header=german, language="en").language == "en"
    assert written(using=default).language == "de"
    assert written(header=english, using=default).language == "en"
    assert "Das Postfach ist voll." in written(header=german).html
    assert receipt(accept_language="de-AT").language == "de"
    assert receipt(accept_language="de-AT", language="en").language == "en"
    assert receipt(using=default).language == "de"
    assert receipt(accept_language="en", using=default).language == "en"
    assert "als gelesen markiert" in receipt(accept_language="de").html


# -- templates of the operator
def test_a_template_replaces_one_text_only(load):
    own = load({"en/failure.txt": "{{ kind }} of {{ recipients[0].address }}: {{ subject }}\n"})
    part = written(using=own)
    assert part.text == "failure of carol@example.net: Lunch"
    assert part.html == written().html
    assert written(using=own, language="de") == written(language="de")
    assert written([DELAYED], ReportKind.DELAYED, using=own).text.startswith("Your message is")


def test_values_are_escaped_in_html_only(load):
    own = load({"en/failure.html": "<b>{{ subject }}</b>", "en/failure.txt": "{{ subject }}"})
    part = written(header=Header.parse(b"Subject: <i>&\r\n"), using=own)
    assert (part.html, part.text) == ("<b>&lt;i&gt;&amp;</b>", "<i>&")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            {"en/5.2.2.txt": "Full!\n\nWait.", "en/5.2.txt": "Box."},
            "Full!\n    What to do: Wait.\n",
        ),
        (
            {"en/5.2.txt": "Box of\n{{ recipient.address }}.\n\nA\n\nB"},
            "Box of carol@example.net.\n    What to do: A B\n",
        ),
        ({"en/5.2.2.txt": "Full!"}, "Full!\n\nDetails"),
        (
            {"en/5.1.txt": "No", "de/5.2.2.txt": "Nein", "en/4.2.2.txt": "No"},
            "The mailbox is full.\n",
        ),
    ],
)
def test_a_text_for_a_status_goes_before_that_of_its_subject(load, files, expected):
    assert expected in written(using=load(files)).text


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"en/failure.txt": "a\n{% if %}"}, "en/failure.txt:2: Expected an expression, got"),
        (
            {"en/failure.html": "a\n\n{{ recipent }}"},
            'en/failure.html:3: found an unknown field "recipent", expected one of arrived, count,',
        ),
        (
            {"en/failure.txt": "\n{% for one in recipients %}\n{{ one.adress }}{% endfor %}"},
            "en/failure.txt:3: 'relay.delivery.reports.wording.RecipientFields object' has no attribute 'adress'",
        ),
        (
            {"de/notread.html": "{{ 1 / (message_id | length) }}"},
            "de/notread.html:1: division by zero",
        ),
        (
            {"en/failure.txt": "{{ ''.__class__.__mro__ }}"},
            "en/failure.txt:1: access to attribute '__class__' of 'str' object is unsafe.",
        ),
        (
            {"en/failure.txt": "{% for a in range(9999) %}{{ 'x' * 999 }}{% endfor %}"},
            "en/failure.txt: more than 262144 characters",
        ),
        (
            {"en/failure.txt": "{% for a in range(10**9) %}{% endfor %}"},
            "en/failure.txt:1: Range too big.",
        ),
        (
            {
                "en/failure.txt": "{% for a in range(90000) %}\n{% for b in range(90000) %}\n"
                "{% endfor %}\n{% endfor %}"
            },
            "en/failure.txt:2: loops for more than 0.2 s",
        ),
        ({"en/failure.txt": "x" * 70_000}, "en/failure.txt: found more than 65536 octets"),
        ({"en/2.0.0.txt": "x"}, 'en/2.0.0.txt: found "2.0.0.txt", expected'),
        (
            {"fr/failure.txt": "x"},
            'fr: found "fr", expected a directory named after a language: de, en',
        ),
    ],
)
def test_a_fault_is_named_with_file_and_line(faults, files, found):
    (fault,) = faults(files)
    assert fault.startswith(found)


def test_octets_that_are_no_utf8_are_a_fault(load, tmp_path):
    (tmp_path / "en").mkdir()
    (tmp_path / "en/failure.txt").write_bytes(b"\xff")
    with pytest.raises(SettingsError, match="not UTF-8"):
        load({})


@pytest.mark.parametrize(
    "text",
    [
        "{% if count > 1000 %}{{ 1 // 0 }}{% endif %}",
        "{{ 'x' * (count * 300) }}",
        "{% for a in range(count - 101) %}{% set b = range(99999) | sum %}{% endfor %}",
    ],
    ids=["raises", "too long", "takes too long"],
)
def test_a_template_that_fails_later_gives_way_and_is_logged(load, text):
    own = load({"en/failure.txt": text})
    crowd = [FULL] * 1001
    with capture_logs() as lines:
        assert written(crowd, using=own) == written(crowd)
    (line,) = [one for one in lines if "a template failed" in str(one)]
    assert "en/failure.txt" in str(line)


# -- the documentation
def test_the_documentation_has_all_fields_and_its_examples_work(load):
    page = DOCS.read_text()
    table = page.partition("| field | is |")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", re.sub(r"\|[^|]*\|$", "", table, flags=re.MULTILINE))) == (
        texts._KIND_FIELDS
    )
    prose = page.partition("A read receipt has")[2].partition(".\n")[0]
    assert set(re.findall(r"`(\w+)`", prose)) == texts._RECEIPT_FIELDS
    status, kind = re.findall(r"```\n(.*?)```", page, flags=re.DOTALL)
    own = load({"en/5.2.2.txt": status, "en/failure.txt": kind})
    text = written([FULL], using=own).text
    assert "carol@example.net did not get your message." in text
    assert "The mailbox of carol@example.net is full. Wait for a day" in text
    assert "mx1.example.net said: 552 5.2.2 Over quota" in text
