"""However a file is damaged, its faults are told: nothing else is ever raised."""

import random
import re
from pathlib import Path

import pytest

from relay.base.settings.document import SettingsError, read_document
from relay.base.settings.environment import shipped
from relay.base.settings.reader import load
from tests.support.long_tests import sampled

PIECES = [
    *('"', "'", '"""', "'''", "[", "]", "[[", "]]", "{", "}", ",", "=", ".", "\n", "\r\n", "#"),
    *("\\", "${env:A}", "${", "nan", "inf", "1e400", "-1", "true", "1979-05-27", "\u2028", "\x00"),
    *("é", '"\\u001b[2J" = 1\n', "99999999999999999999999", "[smtp.tls]\n", "[[smtp]]\n"),
    *("a.b = 1\n", '"x"', "[{}]", "{a=1}", '"${file:/dev/zero}"', '"unix:x"', '"\\u0000"'),
    '"' + "9" * 500 + '"',
]


def damaged(text: str, rng: random.Random) -> str:
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(text))
        match rng.randint(0, 2):
            case 0:
                text = text[:at] + rng.choice(PIECES) + text[at:]
            case 1:
                text = text[:at] + text[at + rng.randint(1, 5) :]
            case _:
                lines = text.split("\n")
                number = rng.randrange(len(lines))
                key, equals, _ = lines[number].partition(" = ")
                lines[number] = key + equals + rng.choice(PIECES)
                text = "\n".join(lines)
    return text


@pytest.mark.parametrize("seed", sampled(range(8)))
def test_a_damaged_file_is_told_about(tmp_path, seed):
    rng = random.Random(seed)
    whole = (shipped("conf") / "relay.toml").read_text()
    whole = re.sub(r"^#(?! |$|tls|auth)", "", whole, flags=re.MULTILINE)
    whole = whole.replace('"submission"', '"relay"')
    file = tmp_path / "relay.toml"
    told = []
    for _ in range(60):
        file.write_text(damaged(whole, rng), newline="")
        try:
            load(file, {"A": "a\udcff"})
        except SettingsError as error:
            told += str(error).split("\n")
    assert len(told) > 20
    assert [line for line in told if not (line.startswith(str(file)) and line.isprintable())] == []


@pytest.mark.parametrize("seed", sampled(range(4)))
def test_every_key_of_a_file_that_is_toml_has_a_line(tmp_path, seed):
    rng = random.Random(seed)
    whole = re.sub(
        r"^#(?! |$)", "", (shipped("conf") / "relay.toml").read_text(), flags=re.MULTILINE
    )
    file: Path = tmp_path / "relay.toml"
    read = 0
    for _ in range(100):
        text = damaged(whole, rng)
        file.write_text(text, newline="")
        try:
            document = read_document(file)
        except SettingsError:
            continue
        read += 1
        lines = text.split("\n")
        for path, line in document.lines.items():
            assert document.value(path) is not None
            if isinstance(path[-1], str) and path[-1].isidentifier():
                assert path[-1] in lines[line - 1]
    assert read > 5
