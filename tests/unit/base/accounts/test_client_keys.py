"""The certificates and JWK sets of accounts.toml: what is read, each fault, and each warning."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from relay.base.accounts.accounts_file import load_accounts
from relay.base.accounts.client_keys import KEYS_MAX
from relay.base.accounts.directory import FileAccounts
from relay.base.settings.document import SettingsError
from tests.support.client_keys import certificate, private_jwk, public_jwk
from tests.support.manual_clock import ManualClock
from tests.support.tables import each_row

ACCOUNT = '[[account]]\naddress = "app@example.test"\nclient_id = "c"\n'
RSA, EC = certificate(), certificate("ec")
PEM = 'client_certificate = "app.pem"'
JWKS = 'client_keys = "app.jwks"'


def load(folder: Path, text: str) -> FileAccounts:
    file = folder / "accounts.toml"
    file.write_text(ACCOUNT + text)
    file.chmod(0o600)
    return load_accounts(file, ["example.test"], clock=ManualClock(), environ={})


def number_of_keys(folder: Path, text: str) -> int:
    accounts = load(folder, text)
    accounts.close()
    return len(accounts.by_client_id("C").keys)


def fault(folder: Path, text: str) -> str:
    with pytest.raises(SettingsError) as error:
        load(folder, text)
    [told] = error.value.faults
    return str(told)


def key_set(*keys: object) -> str:
    return json.dumps({"keys": keys})


def chain() -> str:
    """A client's certificate, and that of its issuer."""
    return certificate(issuer="ca").pem + certificate("ec", name="ca").pem


def renewed() -> str:
    """Two self-signed certificates of one name."""
    return RSA.pem + certificate(number=1).pem


@each_row(
    "pem, number",
    [
        (RSA.pem, 1),
        (EC.pem, 1),
        (renewed(), 2),
        (chain(), 1),
        (f"a text\n{RSA.pem}\n# more", 1),
        (RSA.pem.replace("\n", "\r\n"), 1),
    ],
)
def test_certificates_of_a_file(tmp_path, pem, number):
    (tmp_path / "app.pem").write_text(pem)
    assert number_of_keys(tmp_path, PEM) == number
    assert load(tmp_path, PEM).tables.warnings == []
    assert number_of_keys(tmp_path, f"client_certificate = '{tmp_path}/app.pem'") == number
    assert number_of_keys(tmp_path, 'client_certificate = "${file:app.pem}"') == number


def test_all_kinds_of_credentials_together(tmp_path):
    (tmp_path / "app.pem").write_text(renewed())
    (tmp_path / "app.jwks").write_text(key_set(public_jwk("ec", kid="k"), public_jwk(use="enc")))
    assert number_of_keys(tmp_path, f'{PEM}\n{JWKS}\nclient_secret = "plain:s"') == 3


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda file: None, "found no such file, expected certificates as PEM"),
        (lambda file: file.mkdir(), "found one that cannot be read"),
        (lambda file: file.symlink_to("/dev/null"), "found no regular file"),
        (lambda file: file.write_text(""), "found none that can be read"),
        (lambda file: file.write_text(EC.key_pem), "found none that can be read"),
        (lambda file: file.write_bytes(b"\0\xff" * 100), "found none that can be read"),
        (lambda file: file.write_text(RSA.pem.replace("A", "B")), "found none that can be read"),
        (lambda file: file.write_text("x" * 70_000), "found more than 65536 bytes"),
        (
            lambda file: file.write_text(certificate("rsa1024").pem),
            "certificate 1: found an RSA key of 1024 bits, expected an RSA key of 2048 to 8192 bits",
        ),
        (
            lambda file: file.write_text(RSA.pem + certificate("p384").pem),
            "certificate 2: found a key of the curve secp384r1, expected",
        ),
        (
            lambda file: file.write_text(certificate("ed25519").pem),
            "certificate 1: found a key of another kind",
        ),
        (lambda file: file.write_text(EC.pem * (KEYS_MAX + 1)), f"expected 1 to {KEYS_MAX}"),
    ],
)
def test_faults_of_certificates(
    tmp_path: Path, make: Callable[[Path], object], expected: str
) -> None:
    make(tmp_path / "app.pem")
    told = fault(tmp_path, PEM)
    assert "accounts.toml:4: account[0].client_certificate: " in told
    assert expected in told


@each_row(
    "text, expected",
    [
        ("", "found something else"),
        ("[]", "expected a JWK set (RFC 7517)"),
        ("[" * 9000, "expected a JWK set (RFC 7517)"),
        ('{"keys": 1}', "$.keys"),
        ('{"keys": []}', "found 0, expected 1 to 20 keys for signatures"),
        (key_set(public_jwk(use="enc")), "found 0, expected 1 to 20 keys for signatures"),
        (key_set(*[public_jwk("ec")] * (KEYS_MAX + 1)), "found 21, expected"),
        (key_set({}), "keys[0]: found kty None"),
        (key_set({"kty": "oct", "k": "AAAA"}), "keys[0]: found kty 'oct', expected an RSA key"),
        (key_set({"kty": ["RSA"]}), "found kty ['RSA']"),
        (key_set(public_jwk("ec"), {"kty": "OKP"}), "keys[1]: found kty 'OKP'"),
        (key_set(public_jwk("ec") | {"x": "AAAA"}), "found a damaged key of the kind EC"),
        (key_set(public_jwk("ec") | {"crv": 1}), "keys[0]: found crv 1"),
        (key_set(public_jwk("ec") | {"x": "?"}), "found a damaged key of the kind EC"),
        (key_set(public_jwk("ec") | {"x": 1}), "found a damaged key of the kind EC"),
        (key_set({"kty": "RSA", "n": "AQAB"}), "found a damaged key of the kind RSA"),
        (key_set({"kty": "RSA", "n": 1, "e": "AQAB"}), "found a damaged key of the kind RSA"),
        (key_set(public_jwk("rsa1024")), "keys[0]: found an RSA key of 1024 bits"),
        (key_set(public_jwk("p384")), "keys[0]: found crv 'P-384'"),
        (key_set(public_jwk(alg="RS512")), "keys[0]: found alg 'RS512'"),
        (key_set(public_jwk("ec", alg="RS256")), "keys[0]: found alg 'RS256'"),
        (key_set(public_jwk("ec", alg=["ES256"])), "keys[0]: found alg ['ES256']"),
    ],
)
def test_faults_of_key_sets(tmp_path, text, expected):
    (tmp_path / "app.jwks").write_text(text)
    told = fault(tmp_path, JWKS)
    assert "accounts.toml:4: account[0].client_keys: " in told
    assert expected in told


def test_keys_need_a_client_id(tmp_path):
    (tmp_path / "app.pem").write_text(RSA.pem)
    told = fault(
        tmp_path, f'client_secret = "plain:s"\n[[account]]\naddress = "b@example.test"\n{PEM}'
    )
    assert "account[1].client_certificate: found no client_id, expected one" in told


def warned(folder: Path, text: str) -> str:
    [warning] = load(folder, text).tables.warnings
    return warning


def test_a_private_key_is_warned_of(tmp_path):
    (tmp_path / "app.pem").write_text(RSA.key_pem + RSA.pem)
    assert "found a private key too" in warned(tmp_path, PEM)
    (tmp_path / "app.jwks").write_text(key_set(private_jwk("ec", key_ops=["sign"])))
    assert "keys[0]: found a private key too" in warned(tmp_path, JWKS)


def test_a_file_that_others_can_write_is_warned_of(tmp_path):
    file = tmp_path / "app.pem"
    file.write_text(RSA.pem)
    file.chmod(0o646)
    assert "others can write in it (chmod o-w)" in warned(tmp_path, PEM)
