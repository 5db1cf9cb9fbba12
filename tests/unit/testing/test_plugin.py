"""The pytest plugin, in test runs of its own: fixtures, marker, artifacts, strict, xdist."""

import re
import subprocess
import sys
import venv
import zipfile
from functools import partial
from pathlib import Path

import pytest

from tests.support.inner_pytest import inner_pytest
from tests.support.relay_starts import ROOT

BOUNCE = """
def test_bounce(relay, internet):
    internet.domain("gmail.com").rcpt("joe").reply("550 5.1.1 no such user")
    sent = relay.send("alice@example.test", "joe@gmail.com", "Hello", "x")
    assert sent.bounce.status == "5.1.1"
"""


@pytest.fixture
def run(tmp_path):
    """Run pytest with these files; return its exit code and output."""
    return partial(inner_pytest, tmp_path)


@pytest.fixture
def python(tmp_path):
    """The Python of an environment in which Relay and its plugin are installed; libraries are links."""
    folder = tmp_path / "installed"
    venv.create(folder)
    (site,) = folder.glob("lib/python3.*/site-packages")
    for project in (ROOT, ROOT / "clients/pytest"):
        build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "-d", folder]
        subprocess.run(build, cwd=project, check=True, capture_output=True)
    for wheel in folder.glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(site)
    for one in Path(pytest.__file__).parents[1].iterdir():
        if "graph_relay" not in one.name and one.name not in ("relay", "__pycache__"):
            (site / one.name).symlink_to(one)
    return folder / "bin/python"


def test_no_configuration_is_needed_and_nothing_is_imported_until_a_fixture_is_used(run, python):
    conftest = """
import sys
def pytest_unconfigure():
    modules = [one for one in sorted(sys.modules) if one.partition(".")[0] == "relay"]
    print("IMPORTED", *modules)
    loaders = {one: type(sys.modules[one].__loader__).__name__ for one in modules}
    print("REWRITTEN", *(one for one in modules if loaders[one] == "AssertionRewritingHook"))
"""
    run = partial(run, "--strict-markers", "-W", "error", python=python)
    unused = f"{BOUNCE}\ndef test_unused(): pass\n"
    code, output = run("-k", "unused", conftest=conftest, test_a=unused)
    assert code == 0, output
    assert "IMPORTED relay relay.testing relay.testing.plugin\n" in output
    conftest += 'pytest_plugins = ["relay.testing.plugin"]'
    code, output = run("--relay-artifacts", "kept", conftest=conftest, test_a=BOUNCE)
    assert code == 0, output
    rewritten = re.search("REWRITTEN (.*)", output)[1].split()
    assert rewritten == ["relay.development.internet.test_recipients", "relay.testing.plugin"]


def test_an_unknown_argument_of_the_marker_is_an_error(run):
    test = """
import pytest

@pytest.mark.relay(domain="corp.test")
def test_marked(relay): pass
"""
    code, output = run(test_a=test)
    assert code != 0
    assert "marker relay: found domain, expected config, policies or domains" in output


def test_the_relay_of_a_session_is_emptied_before_each_test(run):
    test = """
import pytest

ports = []

@pytest.fixture
def app(relay_session):
    return relay_session

@pytest.mark.parametrize("number", [1, 2])
def test_it(app, internet, clock, number):
    ports.append(app.smtp.port)
    assert len(set(ports)) == 1
    assert app.messages() == [] and app.internet is internet
    internet.domain("gmail.com").rcpt().reply("550 5.1.1 no", times=1)
    sent = app.send("alice@example.test", "joe@gmail.com", "Hello", "x")
    assert sent.state == "failed"
    internet.strict = True
"""
    code, output = run(test_a=test)
    assert code == 0, output


def test_strict_fails_the_test(run):
    test = """
def test_strict(relay, internet):
    internet.strict = True
    relay.send("alice@example.test", "joe@elsewhere.test", "Hello", "x")
"""
    code, output = run(test_a=test)
    assert code == 1
    assert "mail to domains that the test does not describe: elsewhere.test" in output
    assert "1 failed" in output
    assert "error" not in output.splitlines()[-1]


def test_a_failed_test_keeps_its_messages(run, tmp_path):
    test = """
def test_fails(relay):
    relay.send("alice@example.test", ["bob@example.test", "joe@gmail.com"], "Hello There", "x")
    relay.mailbox("bob@example.test").wait_for(subject="Bye", timeout=0.5)

def test_passes(relay):
    relay.send("alice@example.test", "bob@example.test", "Fine", "x")
"""
    code, output = run("--relay-artifacts", "kept", test_a=test)
    assert code == 1
    (folder,) = (tmp_path / "kept").iterdir()
    names = sorted(one.name for one in folder.iterdir())
    assert sorted(re.sub(r"^0[12]-(\w+@)", r"\1", name) for name in names) == [  # as they arrived
        "01-Hello-There.json",
        "bob@example.test-Hello-There.eml",
        "joe@gmail.com-Hello-There.eml",
        "relay.log",
    ]
    (copy,) = folder.glob("0?-joe@gmail.com-Hello-There.eml")
    assert "Subject: Hello There" in copy.read_text()
    assert re.search(r"-+ relay -+\n.*Hello There.*-> bob@example.test, joe@gmail.com", output)
    assert f"journeys and messages: {folder}" in output
    assert '! subject  expected "Bye", found "Hello There"' in output
    assert "observer.py" not in output
    _, output = run(test_a=test)
    found = re.search(r"journeys and messages: (\S+)", output)
    assert Path(found[1]).is_relative_to(tmp_path / "tmp")


def test_asynchronous_tests_have_a_fixture(run):
    test = """
import asyncio

def test_it(async_relay, internet):
    async def check():
        await async_relay.send("alice@example.test", "joe@gmail.com", "Hello", "x")
        message = await async_relay.mailbox("joe@gmail.com").wait_for(subject="Hello")
        assert message.state == "captured"
        await async_relay.assert_no_more_mail()

    asyncio.run(check())
"""
    code, output = run(test_a=test)
    assert code == 0, output
