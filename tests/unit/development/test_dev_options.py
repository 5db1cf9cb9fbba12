"""The options of `relay dev` on the command line and in the environment."""

import click
import pytest
from click.testing import CliRunner

from relay.base.socket_address import Address
from relay.development.option_fields import PREFIX
from relay.development.verbs.dev import dev
from relay.development.verbs.dev_options import check_together, dev_options, visible_secrets
from tests.support.tables import each_row


def read(*words, **environment):
    """Return the options that the words and the environment variables give."""
    found = {}

    @click.command()
    @dev_options
    def command(**options):
        found.update(options)

    done = CliRunner(env=environment).invoke(command, words)
    assert done.exit_code == 0, done.output
    return found


def refused(*words, **environment):
    done = CliRunner(env=environment).invoke(dev, words)
    assert done.exit_code == 2  # click's own; errors.py makes it 64
    assert done.stdout == ""
    return done.stderr


@each_row(
    "words, variable, text, name, value",
    [
        (["--http", "[::1]:9"], "HTTP", "[::1]:9", "http", Address("::1", 9)),
        (["--port", "8026"], "HTTP", "8026", "http", Address("127.0.0.1", 8026)),
        (["--smtp", "1026"], "SMTP", "1026", "smtp", Address("127.0.0.1", 1026)),
        (["--no-demo"], "NO_DEMO", "1", "no_demo", True),
        (["--no-demo"], "NO_DEMO", "yes", "no_demo", True),
        ([], "NO_DEMO", "off", "no_demo", False),
        ([], "NO_DEMO", "", "no_demo", False),
        (["--like-graph"], "LIKE_GRAPH", "1", "like_graph", True),
        (["--exit-after", "3"], "EXIT_AFTER", "3", "exit_after", 3),
        (
            ["--domain", "A.test", "--domain", "b.test"],
            "DOMAIN",
            "a.test,  B.test",
            "domains",
            ("a.test", "b.test"),
        ),
        (["--domain", "a.test,b.test"], "DOMAIN", "a.test b.test", "domains", ("a.test", "b.test")),
        (["--host", "mail."], "HOST", "Mail", "hosts", ("mail",)),
        (
            ["--release-allow", "*@a.test", "--release-allow", "b?@b.test"],
            "RELEASE_ALLOW",
            "*@a.test, b?@b.test",
            "release_allow",
            ("*@a.test", "b?@b.test"),
        ),
        (["--release-allow", "*"], "RELEASE_ALLOW", "*", "release_allow", ("*",)),
        (["--host", "[::2]"], "HOST", "[::2]", "hosts", ("[::2]",)),
        (
            ["--milter", "127.0.0.1:11332", "--milter", "unix:/run/x.sock"],
            "MILTER",
            "127.0.0.1:11332 unix:/run/x.sock",
            "milters",
            ("127.0.0.1:11332", "unix:/run/x.sock"),
        ),
    ],
)
def test_the_environment_says_the_same_as_the_command_line(words, variable, text, name, value):
    assert read(*words)[name] == value
    assert read(**{PREFIX + variable: text})[name] == value


def warned(*words, **environment):
    """Return the warnings about secrets."""
    found = []

    @click.command()
    @dev_options
    @click.pass_context
    def command(context, **_options):
        found.extend(visible_secrets(context))

    done = CliRunner(env=environment).invoke(command, words)
    assert done.exit_code == 0, done.output
    return found


@pytest.mark.parametrize(
    ("option", "secret"),
    [("--token", "s3cret-s3cret-s3cret"), ("--release-to", "smtps://user:s3cret@mail.example.org")],
)
def test_a_secret_as_an_argument_causes_a_warning(option, secret):
    variable = PREFIX + option.removeprefix("--").replace("-", "_").upper()
    for words in ([option, secret], [f"{option}={secret}"]):
        (warning,) = warned(*words)
        assert f"of {option} in the list of processes" in warning
        assert variable in warning
        assert "s3cret" not in warning
    assert warned(**{variable: secret}) == []
    assert len(warned(option, secret, **{variable: secret})) == 1


def test_arguments_without_a_secret_cause_no_warning():
    assert warned("--release-to", "smtp://mail.example.org:587", "--token", "") == []


def test_the_command_line_counts_more():
    assert read("--domain", "a.test", RELAY_DEV_DOMAIN="b.test")["domains"] == ("a.test",)


@each_row(
    "variable, text, expected",
    [
        ("HTTP", "relay:", "expected PORT, HOST:PORT or [IPV6]:PORT"),
        ("SMTP", "65536", "with a port of 0 to 65535"),
        ("NO_RULES", "maybe", "not a valid boolean"),
        ("DOMAIN", "a.test, -", 'found "-", expected a domain such as "example.org"'),
        ("HOST", "mail:80", 'found "mail:80", expected a host name without a port'),
        ("MILTER", "127.0.0.1:0", 'found "127.0.0.1:0", expected HOST:PORT or unix:PATH'),
        ("RELEASE_ALLOW", "a.test", "expected a pattern of addresses such as *@example.org"),
        ("RELEASE_ALLOW", "*@a.test, @b.test", 'found "@b.test"'),
        ("RULES", "/nonexistent", "does not exist"),
        ("EXIT_AFTER", "0", "not in the range"),
    ],
)
def test_a_wrong_value_names_its_variable(variable, text, expected):
    said = refused(**{PREFIX + variable: text})
    assert f"'{PREFIX}{variable}'" in said
    assert expected in said


def test_with_a_token_every_address_is_allowed():
    check_together(read("--http", "0.0.0.0:1", "--smtp", "[::]:0", "--token", "T"))
    check_together(read("--listen-all", RELAY_DEV_TOKEN="T"))


def test_who_may_get_released_mail_needs_a_host_that_sends_it():
    assert "--release-allow needs --release-to" in refused("--release-allow", "*@a.test")
    to = ("--release-to", "smtp://mail.test")
    assert "--release-auto needs --release-allow" in refused(*to, "--release-auto")
    check_together(read(*to, "--release-allow", "*@a.test", "--release-auto"))


def test_a_wrong_host_to_release_to_does_not_show_its_password():
    assert "secret" not in refused("--release-to", "smtp://me:secret@mail.test/x")
