import pytest
from msgspec.structs import replace

from relay.base.message.content import read_all
from relay.base.message.envelope import Source
from relay.base.message.header import ParsedContent
from relay.transport.policy.rule_files import read_rules
from relay.transport.policy.rule_tests import examined_message
from tests.support.contents import as_large

MAIL = b"From: a@in.test\r\nSubject: hello\r\nX-Old: 1\r\n\r\nbody\r\n"


@pytest.fixture
def rules_of(tmp_path):
    """Write rule files, in the order given, and read them."""

    def write(*texts):
        for earlier in tmp_path.glob("*.toml"):
            earlier.unlink()
        for number, text in enumerate(texts):
            (tmp_path / f"{number}0-rules.toml").write_text(text, encoding="utf-8")
        return read_rules(tmp_path)

    return write


@pytest.fixture(params=[False, True], ids=["small", "large"])
def evaluate(rules_of, request):
    """Evaluate rule files for a message, in both forms of a content; in.test is local."""

    def run(
        *texts, sender="a@in.test", to=("b@out.test",), content=MAIL, source=Source.SMTP, **session
    ):
        subject = examined_message(
            sender, to, content, source=source, local_domains={"in.test"}, **session
        )
        if request.param:
            subject = replace(subject, content=ParsedContent.of(as_large(content)))
        verdict = rules_of(*texts).evaluate(subject)
        return replace(
            verdict, contents=tuple(read_all(each.joined()) for each in verdict.contents)
        )

    return run


def rule(then="", *, name="r", **keys):
    """A [[rule]] in TOML; `then` is the inside of its list."""
    lines = [f"[[rule]]\nname = '{name}'\nthen = [ {then} ]"]
    return "\n".join([*lines, *(f"{key} = {value}" for key, value in keys.items())]) + "\n"
