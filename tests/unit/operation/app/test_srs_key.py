"""The key of SRS addresses: made once, synced before its use, and never replaced."""

import os
import stat
from pathlib import Path

import pytest

from relay.base.settings.document import SettingsError
from relay.base.settings.reader import load
from relay.base.settings.tree import MailboxSettings, Settings
from relay.operation.app.configuration import SRS_KEY_FILE, srs_of

HERE = "relay.test"
SENDER = "ann@example.org"


def settings_in(folder: Path, key: str = "") -> Settings:
    return Settings(hostname=HERE, state_dir=folder, mailboxes=MailboxSettings(srs_key=key))


def written(settings: Settings) -> str:
    return srs_of(settings).rewritten(SENDER, HERE, now_us=0)


def test_the_key_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    address = written(settings_in(tmp_path))
    (file,) = tmp_path.iterdir()
    assert (file.name, stat.S_IMODE(file.stat().st_mode)) == (SRS_KEY_FILE, 0o600)
    made = file.read_bytes()
    assert len(made) == 65
    assert written(settings_in(tmp_path)) == address
    assert file.read_bytes() == made
    (tmp_path / "other").mkdir()
    assert written(settings_in(tmp_path / "other")) != address


def test_a_configured_key_makes_no_file(tmp_path: Path) -> None:
    address = written(settings_in(tmp_path, "a key for several hosts"))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / SRS_KEY_FILE).write_text("")  # is not read either
    assert written(settings_in(tmp_path, "a key for several hosts")) == address


def test_the_key_is_synced_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []

    def synced(descriptor: int) -> None:
        done.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)

    def renamed(path: Path, target: Path) -> None:
        done.append("rename")
        os.replace(path, target)  # noqa: PTH105 - Path.replace is this function

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    srs_of(settings_in(tmp_path))
    assert done[0].startswith(f".{SRS_KEY_FILE}.")
    assert done[1:] == ["rename", tmp_path.name]


@pytest.mark.parametrize("content", [b"", b"\n", b"short\n", b"\xff" * 32, b"a\x01" * 16])
def test_what_is_no_key_is_a_fault_and_stays(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / SRS_KEY_FILE
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(SettingsError, match=r"srs\.key: found .*expected a secret of 16 to"):
        srs_of(settings_in(tmp_path))
    assert file.read_bytes() == content


def test_a_key_that_others_can_read_is_a_fault(tmp_path: Path) -> None:
    key = srs_of(settings_in(tmp_path)).digest()
    (tmp_path / SRS_KEY_FILE).chmod(0o660)  # as a volume's group gets it
    assert srs_of(settings_in(tmp_path)).digest() == key
    (tmp_path / SRS_KEY_FILE).chmod(0o604)
    with pytest.raises(SettingsError, match=r"found mode 0604.*chmod o-rwx"):
        srs_of(settings_in(tmp_path))


def test_a_key_is_a_secret_of_the_configuration(tmp_path: Path) -> None:
    file, key = tmp_path / "relay.toml", tmp_path / "srs"
    file.write_text(
        f'hostname = "{HERE}"\nstate_dir = "state"\n[mailboxes]\nsrs_key = "${{file:srs}}"\n'
    )
    key.write_text("0123456789abcdef\n")
    assert load(file, {}).mailboxes.srs_key == "0123456789abcdef"
    for content in ("", "0123456789abcde", "0123456789abcdef\nx"):
        key.write_text(content)
        with pytest.raises(SettingsError, match=r"toml:4: mailboxes\.srs_key: found .*16 to 1,024"):
            load(file, {})
    key.unlink()
    with pytest.raises(SettingsError, match=r"toml:4: mailboxes\.srs_key: .*srs"):
        load(file, {})
    file.write_text(file.read_text().replace("${file:srs}", "hush-a-secret"))
    with pytest.raises(SettingsError) as caught:
        load(file, {})
    assert "hush" not in str(caught.value)
