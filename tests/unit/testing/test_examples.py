"""The examples of the README, docs/testing.md and checks.md run as they are there."""

import os
import re
from pathlib import Path

import pytest

from relay.development.mail_access.dovecot import find_dovecot
from tests.support.inner_pytest import inner_pytest

TOP = Path(__file__).parents[3]
PROGRAM = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGE = PROGRAM.findall((TOP / "docs/testing.md").read_text())
CHECKS = PROGRAM.findall((TOP / "docs/checks.md").read_text())
README = PROGRAM.findall((TOP / "README.md").read_text().partition("\n## In tests\n")[2])
CONFTEST = "# conftest.py\n"
OF_FRAMEWORKS = ("from django", "from flask")  # tests/clients/test_frameworks.py runs these
BY_IMAP = "import imaplib"


@pytest.fixture
def run(tmp_path):
    def call(**modules: str) -> str:
        code, output = inner_pytest(tmp_path, "-W", "error", "--strict-markers", **modules)
        assert code == 0, output
        return output

    return call


def test_the_programs_of_the_pages_run(run):
    programs = [
        one
        for one in (*README, *PAGE, *CHECKS)
        if not one.startswith(CONFTEST)
        and not any(each in one for each in (*OF_FRAMEWORKS, BY_IMAP))
    ]
    tests = sum(len(re.findall(r"^ *def test_", one, re.MULTILINE)) for one in programs)
    assert len(README) >= 1
    assert tests > 8
    output = run(**{f"test_{number}": text for number, text in enumerate(programs)})
    assert f"{tests} passed" in output


@pytest.mark.skipif(not find_dovecot().imap, reason=find_dovecot().why_not("imap"))
def test_the_program_by_imap_runs(short_path):
    """Dovecot refuses root."""
    user = 65534 if os.geteuid() == 0 else 0
    os.chown(short_path, user or -1, -1)
    (program,) = [one for one in PAGE if BY_IMAP in one]
    code, output = inner_pytest(short_path, user=user, test_imap=program)
    assert code == 0, output


def test_a_shared_relay_is_as_the_page_says(run):
    (conftest,) = [one for one in PAGE if one.startswith(CONFTEST)]
    test = "def test_it(relay, relay_session): assert relay is relay_session\n"
    assert "2 passed" in run(conftest=conftest, test_a=test, test_b=test)
