"""URLs of PostgreSQL servers: what is read, what is refused, and that no text has the password."""

from pathlib import Path

import pytest

from relay.base.settings.document import SettingsError
from relay.base.settings.postgres_url import ServerOptions, parse_postgres_url
from relay.base.settings.reader import load
from tests.support.tables import each_row

SMALL = 'hostname = "relay.test"\nstate_dir = "state"\n[spool]\n'


@each_row(
    "url, expected",
    [
        ("postgresql:///relay", ServerOptions((("/run/postgresql", 5432),), "relay")),
        (
            "postgresql://u@/relay?host=/tmp/pg&port=6000",
            ServerOptions((("/tmp/pg", 6000),), "relay", "u"),
        ),
        ("postgresql://%2Ftmp%2Fpg/relay", ServerOptions((("/tmp/pg", 5432),), "relay")),
        (
            "postgresql://u%40h:a%25%2F%3A@localhost:1/a%20b",
            ServerOptions((("localhost", 1),), "a b", "u@h", "a%/:"),
        ),
        (
            "postgresql://u:p@s@127.0.0.1,[::1]:2/r?connect_timeout=3&application_name=mail",
            ServerOptions(
                (("127.0.0.1", 5432), ("::1", 2)),
                "r",
                "u",
                "p@s",
                application_name="mail",
                timeout_s=3.0,
            ),
        ),
        (
            "postgresql://u@a.test,b.test/r?sslmode=verify-full&sslrootcert=/ca.pem&sslcert=/c.pem&sslkey=/k.pem",
            ServerOptions(
                (("a.test", 5432), ("b.test", 5432)),
                "r",
                "u",
                tls="verify-full",
                authorities="/ca.pem",
                certificate="/c.pem",
                key="/k.pem",
            ),
        ),
        ("postgresql:///r?host=/a,/b&port=1,2", ServerOptions((("/a", 1), ("/b", 2)), "r")),
    ],
)
def test_what_is_read(url, expected):
    assert parse_postgres_url(url) == expected


@each_row(
    "url, expected",
    [
        ("postgresql://", "with the name of a database"),
        ("postgresql://localhost/a/b", "with the name of a database"),
        ("postgres://localhost/a", "USER@HOST/DATABASE"),
        ("postgresql://@localhost/a", "USER@HOST/DATABASE"),
        ("postgresql://localhost:65536/a", "a port of 1 to 65535"),
        ("postgresql://::1/a", "a host name"),
        ("postgresql://[::1/a", "in brackets"),
        ("postgresql://db.test/a", "sslmode=verify-full"),
        ("postgresql://db.test/a?sslmode=verify-ca", "sslmode=verify-full"),
        ("postgresql://127.0.0.1.test/a", "sslmode=verify-full"),
        ("postgresql://localhost/a?sslmode=prefer", "sslmode as one of disable, require"),
        ("postgresql://localhost/a?sslrootcert=ca.pem", "an absolute path as sslrootcert"),
        ("postgresql://localhost/a?sslcert=/c", "both sslcert and sslkey"),
        (
            "postgresql://localhost/a?password=hidden",
            "connect_timeout, host, port, sslmode, sslrootcert, sslcert, sslkey, not password",
        ),
        ("postgresql://localhost/a?hidden", "application_name, connect_timeout"),
        ("postgresql:///a?host=/b&host=/c", "one value for the parameter host"),
        ("postgresql://localhost/a?host=/b", "either before the database"),
        ("postgresql:///a?host=/b,/c&port=1,2,3", "one port for all hosts, or one for each"),
        ("postgresql://localhost/a?connect_timeout=0", "1 to 600 seconds"),
        ("postgresql://localhost/a#b", "USER@HOST/DATABASE"),
        ("postgresql://localhost/%zz", '"%" in the URL as "%25"'),
        ("postgresql://localhost/%ff", "a URL in UTF-8"),
        ("postgresql://localhost/a%00", "of printable characters"),
        ("postgresql://u:1/hidden?hidden=1@localhost/a", "in a password as"),
    ],
)
def test_what_is_refused(url, expected):
    with pytest.raises(ValueError) as caught:
        parse_postgres_url(url)
    assert expected in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_no_text_has_the_password(tmp_path):
    options = parse_postgres_url("postgresql://u:hidden@[::1]:2,localhost/r?application_name=n")
    assert str(options) == "postgresql://[::1]:2,localhost:5432/r"
    assert repr(options) == f"ServerOptions({options})"
    assert f"{options.hosts!r} {options}".count("hidden") == 0
    file = tmp_path / "relay.toml"
    file.write_text(f'{SMALL}url = "postgresql://u:${{env:SECRET}}@localhost/relay"')
    settings = load(file, {"SECRET": "a/b@c:d?e=f#g%20&h i"})
    assert parse_postgres_url(settings.spool.url).password == "a/b@c:d?e=f#g%20&h i"
    file.write_text(f'{SMALL}url = "${{env:URL}}"')
    whole = load(file, {"URL": "postgresql://u:a%2Fb@localhost/relay"})
    assert parse_postgres_url(whole.spool.url).password == "a/b"
    assert "postgresql:" not in repr(settings)


def fault_of(folder: Path, spool: str, **environ: str) -> str:
    file = folder / "relay.toml"
    file.write_text(SMALL + spool)
    with pytest.raises(SettingsError) as caught:
        load(file, environ)
    (fault,) = caught.value.faults
    return str(fault).removeprefix(str(folder))


@each_row(
    "spool, fault",
    [
        (
            'url = "postgresql://u:hidden@localhost/relay"',
            "/relay.toml:4: spool.url: found something else, expected the password as ${file:PATH} or ${env:NAME}",
        ),
        (
            'url = "postgresql://u:${env:NONE}@localhost/relay"',
            "/relay.toml:4: spool.url: found something else, expected the environment variable NONE to be set, or NONE_FILE (docs/cloud.md has those of the image)",
        ),
        (
            'url = "${env:BAD}"',
            '/relay.toml:4: spool.url: found "${env:BAD}", expected a port of 1 to 65535',
        ),
        (
            'node = "a b"',
            '/relay.toml:4: spool.node: found "a b", expected a name of at most 63 letters, digits, dots, hyphens and underscores',
        ),
    ],
)
def test_faults_of_the_file(tmp_path, spool, fault):
    bad = "postgresql://u:hidden@localhost:x/relay"
    assert fault_of(tmp_path, spool, HOST="localhost", BAD=bad) == fault


@pytest.mark.parametrize(("text", "name"), [("", "relay.test"), ('node = "n1"', "n1")])
def test_the_name_of_the_node(tmp_path, text, name):
    file = tmp_path / "relay.toml"
    file.write_text(SMALL + text)
    assert load(file, {}).node == name


def test_a_queue_on_a_server_has_no_file_of_its_own(tmp_path):
    file = tmp_path / "relay.toml"
    file.write_text(f'{SMALL}url = "postgresql:///relay"')
    assert load(file, {}).spool_file == tmp_path / "state/spool.sqlite"
