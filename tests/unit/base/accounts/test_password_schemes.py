"""Hashes of other programs are passwords here: those of doveadm pw, openssl passwd, and /etc/shadow."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from relay.base.accounts.account import LoginDelayedError
from relay.base.accounts.password_schemes import Password, is_plain, parse_password, shown_scheme
from relay.base.settings.document import SettingsError
from tests.support.tables import each_row
from tests.unit.base.accounts.test_directory import AN_ACCOUNT, load

SHA512 = "$6$9KGrvM2Da8Pp45kv$29cjp6zOeNHQh3zxJlPVO49.1dDkZPifaaDp2rjn5O2nKZJAYoZThN15Cz8apP4NHrQUGbe8c9NxDhMEnjkJQ1"
BCRYPT = "$2y$05$sbsJ9BNASZ2GjBcOVp3M2.1oL1ZDS.RafkUvf6lCVfibL9KhE3Z/2"
ARGON2I = "$argon2i$v=19$m=8,t=1,p=1$cmVsYXlyZWxheXJlbGF5cg$"
FOUR_LANES = "$argon2id$v=19$m=32,t=2,p=4$YW5kIHNpeHRlZW4gaGVyZQ$CLg/hDp1OrrF+oW+G//5Eg"
STORED = {  # of pä55: what doveadm pw of Dovecot 2.3 wrote, crypt(3), and argon2-cffi
    "{BLF-CRYPT}" + BCRYPT: "BLF-CRYPT",
    BCRYPT: "BLF-CRYPT",
    BCRYPT.replace("$2y$", "$2b$"): "BLF-CRYPT",
    BCRYPT.replace("$2y$", "$2a$"): "BLF-CRYPT",
    "{CRYPT}" + BCRYPT: "BLF-CRYPT",
    "{SHA256-CRYPT}$5$HUokanbdbDvy3tBd$s3ASdBbIXR.7jqdEhO5X.YjksNTwp3ZEpbyY2887ep8": "SHA256-CRYPT",
    SHA512: "SHA512-CRYPT",
    "{sha512-crypt}" + SHA512: "SHA512-CRYPT",
    "{SHA512-CRYPT.B64}JDYkeTRkVXA4RWloWGNCWTkybSRLellScHFQNUEyYkJiUWF4dDljOWROZUpIbXdtc1d6SUxRc1lFTlFJQldkS21vND"
    "BCeExZV3FyV2hnODRIREFnV2psd1hMSkphdUthTURWY1lpOGViMQ==": "SHA512-CRYPT",
    "{MD5-CRYPT}$1$HTfdvQU/$d0AddxfKQytdOiB3z4r8W.": "MD5-CRYPT",
    "$y$j75$LdJMENpBABJJ3hIHjB1Bi.$cAErpYCIQN1U9VUNPICC2hU4FdABpwLTmIHQKgEFR.7": "YESCRYPT",
    FOUR_LANES: "ARGON2ID",
    "$argon2id$v=19$m=8,t=2,p=1$OCBvY3RldHM$tKygQbqv+IIP4kqcD91BK9xO+CG71h9OpxVnRTLd9jg": "ARGON2ID",
    "$argon2id$v=16$m=8,t=2,p=1$OCBvY3RldHM$SwLrHk3JarCNyGkhQqVFo/PSC+d4PJVculn2QjXNPt8": "ARGON2ID",
    "{ARGON2I}$argon2i$v=19$m=8,t=2,p=1$OCBvY3RldHM$mDApFAdTXX7ImJcyV/wSMZ8aF4GWeqfOcpTYPdIM8CA": "ARGON2I",
    "$argon2i$v=19$m=32,t=2,p=4$YW5kIHNpeHRlZW4gaGVyZQ$l8iKlRGQ3txwDomlQHxXcg": "ARGON2I",
    "{SSHA}d+8eKaZN7DaPdT+5UK2BYrGJcyqKF6Jj": "SSHA",
    "{SSHA.HEX}3a9a06bfc842cfebee31999794dcfa7ca91bb5724bc368cb": "SSHA",
    "{SSHA256}DZBsWg8wfZEupU2GKGnIgK5O9bMlEl3IIMUMoIG1fcatGy1s": "SSHA256",
    "{SSHA512}2dWpvKeZk0gGChsQ0ZpFGh3ScHmu2aUXCR1KhrI2SZUB/QwGijK0d50ehwyAXt3+03FpOawWOMoi1vvEyjDprUTBtAA=": "SSHA512",
    "{SHA}fkl9o00xSnp/OtAs+3IIsM74JEI=": "SHA",
    "{SHA256}DZvtSTrtdiGI4q33jBvdvvuaP9TG1Yt0aNIHzdYv70s=": "SHA256",
    "{SHA512}hMmtCDjN+4swiYj6MzxH7+Gr/FSKl0v1JT3mcZv09H382TDOMoLVYNYn4eqoW2nusnT/TQosfdjAW/K/qLRe8w==": "SHA512",
    "{PBKDF2}$1$Z5Ph8sz/wbPy1IOh$5000$00305cc57d8376591de664f73d2c753bc2283752": "PBKDF2",
    "{PLAIN}pä55": "PLAIN",
    "{CLEARTEXT}pä55": "PLAIN",
    "{PLAIN.HEX}70c3a43535": "PLAIN",
    "plain:pä55": "PLAIN",
}


@pytest.mark.parametrize(("text", "scheme"), STORED.items())
def test_the_right_password_matches_and_no_other(text: str, scheme: str) -> None:
    stored = parse_password(text)
    assert stored.scheme == scheme
    assert stored.matches("pä55") is True
    others = ["pa55", "", "pä5", "pä55 ", "pä55" * 150, "pä55\0"]
    if scheme == "PBKDF2":
        others.pop()  # HMAC pads its key with zeros
    for other in others:
        assert stored.matches(other) is False, other
    if stored.hashed:
        assert stored.for_nobody().matches("pä55") is False
        assert stored.hashed not in (stored.for_nobody().hashed, "")


def test_passwords_are_compared_in_several_threads_at_once() -> None:
    stored = parse_password(FOUR_LANES)
    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(stored.matches, ["pä55"] * 100))


def test_a_password_of_a_scheme_is_one_of_the_account(tmp_path: Path) -> None:
    texts = [
        f'[[account]]\naddress = "{n}@example.test"\npassword = "{one}"\n'
        for n, one in enumerate(STORED)
    ]
    accounts = load(tmp_path, "".join(texts))
    assert accounts.tables.schemes() == {
        one: list(STORED.values()).count(one) for one in STORED.values()
    }
    assert accounts.tables.schemes().most_common(1)[0][0] == "BLF-CRYPT"
    warned = [one for one in accounts.tables.warnings if "found a plain secret" in one]
    assert len(warned) == sum(map(is_plain, STORED)) == 4
    assert accounts.tables.nobody == parse_password(BCRYPT).for_nobody()


@each_row(
    "stored, nobody", [([BCRYPT, SHA512, SHA512], SHA512), ([BCRYPT, "plain:a", "plain:b"], BCRYPT)]
)
def test_an_unknown_user_takes_the_time_of_most_hashes(
    tmp_path: Path, stored: list[str], nobody: str
) -> None:
    texts = [
        f'[[account]]\naddress = "{number}@example.test"\npassword = "{text}"\n'
        for number, text in enumerate(stored)
    ]
    found = load(tmp_path, "".join(texts)).tables.nobody
    assert found == parse_password(nobody).for_nobody()


async def test_a_login_with_such_a_password(tmp_path: Path) -> None:
    accounts = load(tmp_path, AN_ACCOUNT + f'password = "{{CRYPT}}{SHA512}"\n')
    found = await accounts.by_password("A@example.test", "pä55", client="192.0.2.1")
    assert found is not None
    assert found.address == "a@example.test"
    assert await accounts.by_password("a@example.test", "pa55", client="192.0.2.1") is None
    assert await accounts.by_password("nobody@example.test", "pä55", client="192.0.2.1") is None
    accounts.close()


@each_row(
    "text, shown, expected",
    [
        ("{SCRAM-SHA-256}4096,abc,def", "{SCRAM-SHA-256}", "{SHA512-CRYPT}"),
        ("{MD5}abc", "{MD5}", "{BLF-CRYPT}"),
        (
            "$7$CU..../....2Q9obwLhin8qvQl6sisAO/$E1HizYWxBmnIH4sdPkd1UOML9t62Gf.wvNTnt5XFzs8",
            "$7$",
            "$2b$",
        ),
        ("aa.MD5.DES", "something else", "$6$..."),
        ("", "something else", "$6$..."),
        ("{PLAIN}", "{PLAIN}", "plain:..."),
        ("{SSHA}!", "{SSHA}", "base64"),
        ("{SSHA}fkl9o00xSnp/OtAs+3IIsM74JEI=", "{SSHA}", "20 bytes and a salt"),
        ("{SHA256}fkl9o00xSnp/OtAs+3IIsM74JEI=", "{SHA256}", "32 bytes, as base64"),
        ("{SHA256.HEX}zz", "{SHA256.HEX}", "hexadecimal digits"),
        ("{SSHA256}" + "QUFB" * 40, "{SSHA256}", "a salt of at most 64"),
        (SHA512[:-1], "$6$", "of up to 999999 rounds"),
        (SHA512 + "x", "$6$", "of up to 999999 rounds"),
        (
            "{SHA512-CRYPT}" + SHA512.replace("$6$", "$6$rounds=999999999$"),
            "{SHA512-CRYPT}",
            "of up to 999999 rounds",
        ),
        (BCRYPT.replace("$05$", "$31$"), "$2y$", "of a cost up to 15"),
        (BCRYPT.replace("$2y$", "$2x$"), "$2x$", "of a cost up to 15"),
        (
            "$y$jFT$LdJMENpBABJJ3hIHjB1Bi.$cAErpYCIQN1U9VUNPICC2hU4FdABpwLTmIHQKgEFR.7",
            "$y$",
            "{YESCRYPT}",
        ),
        ("{PBKDF2}$1$salt$99999999$" + "0" * 40, "{PBKDF2}", "{PBKDF2}"),
        ("{PBKDF2}$1$salt$0$" + "0" * 40, "{PBKDF2}", "{PBKDF2}"),
        (ARGON2I.replace("m=8", "m=99999999") + "A" * 43, "$argon2i$", "at most 1 GiB"),
        ("$argon2id$v=19$m", "$argon2id$", "a whole Argon2 hash"),
        ("{hunter2}", "something else", "$6$..."),
        ("$hunter2$", "something else", "$6$..."),
    ],
)
def test_a_fault_says_what_was_found_and_expected_and_no_secret(
    tmp_path: Path, text: str, shown: str, expected: str
) -> None:
    with pytest.raises(ValueError) as raised:
        parse_password(text)
    assert expected in str(raised.value)
    assert shown_scheme(text) == shown
    if text:
        with pytest.raises(SettingsError) as caught:
            load(tmp_path, AN_ACCOUNT + f'password = "{text}"\n')
        (fault,) = str(caught.value).splitlines()
        assert fault.startswith(str(tmp_path / "accounts.toml:3: account[0].password: "))
        assert f"found {shown}, expected {raised.value}" in fault


async def test_what_this_libcrypt_does_not_know_is_no_wrong_password(checker) -> None:
    """The login is put off, with the cause: nobody is told that the password is wrong."""
    stored = Password("$2q$05$sbsJ9BNASZ2GjBcOVp3M2.1oL1ZDS", scheme="BLF-CRYPT")
    with pytest.raises(LoginDelayedError) as raised:
        await checker.check("u", stored, "x", client="192.0.2.1")
    assert "knows no $2q" in str(raised.value.__cause__)
