"""`relay account import`: users of other servers become accounts, all or none."""

from pathlib import Path

import pytest

from tests.support.tables import each_row
from tests.unit.operation.cli.test_account import Files

HASH = "$6$9KGrvM2Da8Pp45kv$29cjp6zOeNHQh3zxJlPVO49.1dDkZPifaaDp2rjn5O2nKZJAYoZThN15Cz8apP4NHrQUGbe8c9NxDhMEnjkJQ1"
CSV = f"""\
address,hash,quota,aliases
Carol@example.test,{HASH},2 GiB,"info@example.test, help@example.test"

dave@example.test,"$argon2id$v=19$m=65536,t=3,p=4$cmVsYXlyZWxheXJlbGF5cg$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",1073741824,
eve@example.test,,,
"""
PASSWD = f"""\
# doveadm's users
carol@example.test:{{SHA512-CRYPT}}{HASH}:5000:5000::/var/mail/carol::userdb_quota_rule=*:storage=1G userdb_quota_rule2=Trash:storage=+10%

dave@example.test:{HASH}:::::: userdb_quota_storage_size=512M
eve@example.test:{{PLAIN}}secret::::::userdb_quota_rule=*:storage=2048
fay@example.test:{{SSHA}}d+8eKaZN7DaPdT+5UK2BYrGJcyqKF6Jj::::::userdb_quota_rule=*:bytes=4096 nopassword
gus@example.test:{HASH}
hal@example.test::::::::userdb_quota_rule=*:bytes=0
"""


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def written(files: Files, text: str | bytes) -> str:
    file = files.folder / "users"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(file)


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["", "with a byte order mark"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
async def test_a_csv(files: Files, mark: str, end: str) -> None:
    before = files.text
    file = written(files, mark + CSV.replace("\n", end))
    assert files.made("import", file) == {"accounts": 3, "dry_run": False}
    assert files.text.startswith(before)
    accounts = files.load()
    found = await accounts.by_password("info@example.test", "pä55", client="")
    assert found.address == "carol@example.test"
    assert found.quota == 2 * 1024**3
    assert found.aliases == ("info@example.test", "help@example.test")
    assert accounts.by_address("dave@example.test").quota == 1024**3
    assert accounts.tables.schemes() == {"SHA512-CRYPT": 1, "ARGON2ID": 1, "PLAIN": 1}
    assert accounts.by_address("eve@example.test").quota is None
    accounts.close()


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["", "with a byte order mark"])
async def test_a_passwd_file(files: Files, mark: str) -> None:
    assert files.made("import", written(files, mark + PASSWD))["accounts"] == 6
    accounts = files.load()
    quotas = {one.address.partition("@")[0]: one.quota for one in accounts.every()[2:]}
    assert quotas == {
        "carol": 1024**3,
        "dave": 512 * 1024**2,
        "eve": 2048 * 1024,
        "fay": 4096,
        "gus": None,
        "hal": None,
    }
    assert await accounts.by_password("gus@example.test", "pä55", client="") is not None
    assert await accounts.by_password("fay@example.test", "pä55", client="") is not None
    assert await accounts.by_password("hal@example.test", "", client="") is None
    accounts.close()


def test_a_dry_run_changes_nothing(files: Files) -> None:
    before = files.text
    file = written(files, CSV)
    assert files("import", file, "--dry-run").stdout == "3 accounts can be imported\n"
    assert files.text == before
    assert list(files.folder.glob(".*")) == []
    assert files("import", file).stdout == "3 accounts imported\n"
    code, told = files.fails("import", file)
    assert code == 65
    assert told.splitlines()[0] == (
        f'{file}:2: address: found "carol@example.test", expected one of its own:'
        f" {files.accounts}:{files.text.count(chr(10), 0, files.text.index('Carol@')) + 1} has the same"
    )


def test_the_first_accounts(files: Files) -> None:
    files.accounts.unlink()
    assert files.made("import", written(files, PASSWD))["accounts"] == 6
    assert files.accounts.stat().st_mode & 0o777 == 0o640


FAULTY = f"""\
address,hash,quota,aliases
alice@example.test,{HASH},,
carol@example.test,{{MD5}}hunter2,,x@example.test
carol@example.test,{HASH},five,
d@example.test,$argon2id$v=19$m=8,t=1,p=1$cmVs$AAAA,,
e@other.test,{HASH},,x@example.test sales@example.test
good@example.test,{HASH},,
,{HASH},,
"""


@pytest.mark.parametrize("option", [(), ("--dry-run",)], ids=["", "dry run"])
def test_all_faults_are_told_with_their_lines(files: Files, option: tuple[str, ...]) -> None:
    file = written(files, FAULTY)
    code, told = files.fails("import", file, *option)
    assert code == 65
    assert "hunter2" not in told
    assert "account[" not in told
    expected = [
        f'2: address: found "alice@example.test", expected one of its own: {files.accounts}:4 has',
        "3: hash: found {MD5}, expected $argon2id$",
        '4: address: found "carol@example.test", expected one of its own: line 3 has the same',
        '4: quota: found "five", expected a size',
        "5: found 6 columns, expected 4: a hash with commas is in quotes",
        '6: address: found "e@other.test", expected an address in one of mailboxes.domains',
        '6: aliases[0]: found "x@example.test", expected one of its own: line 3 has the same',
        f'6: aliases[1]: found "sales@example.test", expected one of its own: {files.accounts}:7 has',
        '8: address: found ""',
    ]
    lines = told.splitlines()
    assert len(lines) == len(expected), told
    for line, wanted in zip(lines, expected, strict=True):
        assert line.startswith(f"{file}:{wanted}"), line


@pytest.mark.parametrize("good", ["", "z@example.test,,,\n"], ids=["all", "all but one"])
def test_of_many_faults_twenty_are_told(files: Files, good: str) -> None:
    rows = "".join(f"u{n}@example.test,{{DES}}x,,\n" for n in range(1_000))
    file = written(files, f"address,hash,quota,aliases\n{good}{rows}")
    code, told = files.fails("import", file)
    lines = told.splitlines()
    assert code == 65
    assert len(lines) == 21
    first = 3 if good else 2
    assert [one.split(":")[1] for one in lines[:20]] == [str(n) for n in range(first, first + 20)]
    assert lines[20] == f"{file}: 980 faults more"


@each_row(
    "text, expected",
    [
        (
            "bob\n",
            ":1: found no colon, expected ADDRESS:HASH:..., or a CSV with the header address,",
        ),
        ("address,hash,name\n", ':1: found the column "name", expected the header address,hash'),
        ("address,address\n", ':1: found the column "address", expected the header address,hash'),
        ("email,hash\na@b.test,x\n", ':1: found the column "email", expected the header address,'),
        ("hash,quota\n", ':1: found no column "address", expected the header address,hash,quota,'),
        ("address;hash\na;b\n", ':1: found ";" between columns, expected the header address,hash'),
        ('"address"x,hash\n', ":1: found no CSV ("),
        ("", ": found no account, expected one or several"),
        ("address,hash\n", ": found no account, expected one or several"),
        ("# a, b\n", ": found no account, expected one or several"),
        ('address,hash\nc@example.test,\nd@example.test,"x\n', ":3: found no CSV (unexpected end"),
        ('address\n"c@example.test"x\n', ":2: found no CSV ("),
        (b"address,hash\nc\xe4@example.test,x\n", ":2: found the byte 0xe4, expected UTF-8"),
        (CSV.encode("utf-16"), ":1: found the byte 0xff, expected UTF-8"),
        (b"x" * (16 * 1024 * 1024 + 1), ": found more than 16777216 bytes"),
        ("c@example.test:a\0b\n", ":1: hash: found"),
        ("c@example.test:${env:HOME}\n", ":1: hash: "),
    ],
)
def test_what_is_no_such_file(files: Files, text: str | bytes, expected: str) -> None:
    file = written(files, text)
    code, told = files.fails("import", file)
    assert code == 65
    (line,) = told.splitlines()
    assert line.startswith(f"{file}{expected}"), line


async def test_a_locked_user_has_no_password(files: Files) -> None:
    locked = f"carol@example.test:!{HASH}:::\ndave@example.test:*:::\nfay@example.test:!!:::\n"
    assert files.made("import", written(files, locked))["accounts"] == 3
    accounts = files.load()
    assert accounts.tables.schemes() == {"PLAIN": 1}
    assert await accounts.by_password("carol@example.test", "pä55", client="") is None
    accounts.close()


POSTFIX = (
    "# virtual(5), aliases(5)\npostmaster:    root\nRoot: alice,\n\tbob@example.test\r\n\n"
    '  , "carol x"@other.test\n"john.smith":joe@other.test\n'
    'office@example.test  alice@example.test, bob\njosé : "alice"\n'
)
FOREIGN = "expected NAME: ADDRESS, ... (no program, file, :include:, or whole domain)"
FAULTY_ALIASES = [
    ("news: alice, :include:/etc/news", f'found ":include:/etc/news", {FOREIGN}'),
    ('hook: /x, "|/usr/bin/hook --now, ann"', f'found "/x", {FOREIGN}'),
    ("@example.test alice", f'found "@example.test", {FOREIGN}'),
    (
        "one: two, two",
        "to: found the ring one@example.test (line 4) -> two@example.test (line 5) ->",
    ),
    ("two: one", ""),
    ("no colon here", f'found "no colon here", {FOREIGN}'),
    ("alice: y@other.test", 'address: found "alice@example.test", expected one of its own: '),
    ("x@other.test: alice", 'address: found "x@other.test", expected an address in one of'),
    ("dup:", "to: found [], expected an address"),
    ("DUP: bob", 'address: found "dup@example.test", expected one of its own: line 9 has the same'),
    ('"john smith": alice', 'address: found "john smith@example.test", expected an address such'),
]


def test_aliases(files: Files) -> None:
    before, file = files.text, written(files, POSTFIX)
    told = files("import", "--aliases", file, "--dry-run").stdout
    assert told == "5 aliases can be imported; names without a domain: @example.test\n"
    assert files.text == before
    assert files.made("import", "--aliases", file) == {"aliases": 5, "dry_run": False}
    accounts, people = files.load(), ("alice@example.test", "bob@example.test")
    expected = {
        "postmaster": (*people, '"carol x"@other.test'),
        "john.smith": ("joe@other.test",),
        "office": people,
        "josé": people[:1],
    }
    found = {name: accounts.expand(f"{name}@example.test").addresses for name in expected}
    assert found == expected
    accounts.close()
    faulty = "".join(f"{line}\n" for line, _ in FAULTY_ALIASES)
    _, told = files.fails("import", "--aliases", written(files, faulty))
    expected = [f"{file}:{at}: {text}" for at, (_, text) in enumerate(FAULTY_ALIASES, 1) if text]
    assert [a[: len(b)] for a, b in zip(told.splitlines(), expected, strict=True)] == expected
