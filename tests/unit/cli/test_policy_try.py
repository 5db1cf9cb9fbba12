"""`relay policy try`: the options are the words of the rules."""

import pytest
from click.testing import CliRunner

from relay.cli.root import cli


@pytest.fixture
def written(tmp_path):
    (tmp_path / "relay.toml").write_text(
        'hostname = "relay.example.test"\nstate_dir = "state"\n[policy]\ndirectory = "rules"\n'
    )
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules/10.toml").write_text(
        '[[rule]]\nname = "by the api"\nwhen = { source = "graph" }\nthen = [ { discard = true } ]\n'
    )
    (tmp_path / "one.eml").write_bytes(b"Subject: x\n\nhi\n")
    return tmp_path


@pytest.mark.parametrize(
    ("options", "fate"),
    [(["--source", "graph"], "discarded (by the api)"), ([], "delivered")],
)
def test_a_source_is_named_as_in_the_rules(written, options, fate):
    arguments = [
        "policy",
        "try",
        str(written / "one.eml"),
        "--from",
        "a@b.test",
        "--to",
        "c@d.test",
    ]
    reported = CliRunner().invoke(
        cli, [*arguments, "--config", str(written / "relay.toml"), *options]
    )
    assert reported.exit_code == 0, reported.output
    assert f"c@d.test: {fate}\n" in reported.output


@pytest.mark.parametrize(
    ("sender", "recipient", "found"),
    [
        ("ab.c", "c@d.test", '"ab.c"'),
        ("a@b.test", "d.test", '"d.test"'),
        ("a@b.test", "<>", '"<>"'),
    ],
)
def test_an_invalid_address_is_rejected(written, sender, recipient, found):
    arguments = ["policy", "try", str(written / "one.eml"), "--from", sender, "--to", recipient]
    reported = CliRunner().invoke(cli, [*arguments, "--config", str(written / "relay.toml")])
    assert reported.exit_code == 2
    assert f"found {found}, expected an address" in reported.stderr


def test_the_null_reverse_path_is_an_address_to_try_from(written):
    arguments = ["policy", "try", str(written / "one.eml"), "--from", "<>", "--to", "c@d.test"]
    reported = CliRunner().invoke(cli, [*arguments, "--config", str(written / "relay.toml")])
    assert reported.exit_code == 0, reported.output
