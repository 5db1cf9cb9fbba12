"""What clients set of received mail: after kill -9, in a backup, and in a damaged file."""

import shutil
from pathlib import Path

from tests.support.relay_process import RelayProcess, until

OK, DATA = 0, 65
PROPERTIES = "mail/example.test/bob/relay-properties"


def received(relay: RelayProcess) -> str:
    """Return the path of a message that bob has received."""
    relay.until_final(relay.send_mail(to=["bob@example.test"], subject="order"))
    page = relay.graph("GET", "/me/mailFolders/inbox/messages", token="bob").json()
    return f"/me/messages/{page['value'][0]['id']}"


def categories(relay: RelayProcess, path: str) -> list[str]:
    return list(relay.graph("GET", path, token="bob").json()["categories"])


def test_they_survive_a_kill_a_backup_and_a_damaged_file(tmp_path: Path, serve) -> None:
    copy = tmp_path / "copy"
    relay = serve()
    path = received(relay)
    for number in range(20):
        change = {"categories": ["Done", str(number)], "flag": {"flagStatus": "complete"}}
        assert relay.graph("PATCH", path, change, token="bob").status == 200
    relay.kill()
    relay.start()
    assert categories(relay, path) == ["Done", "19"]
    assert relay.cli("backup", str(copy)).returncode == OK  # while its log has the changes
    assert relay.graph("PATCH", path, {"categories": []}, token="bob").status == 200
    relay.stop()
    for name in ("state", "mail"):
        shutil.rmtree(relay.folder / name)
    done = relay.cli("restore", str(copy))
    assert done.returncode == OK, done.stderr
    relay.start()
    assert categories(relay, path) == ["Done", "19"]
    found = relay.graph("GET", path, token="bob").json()["flag"]
    assert found["flagStatus"] == "complete"
    # damaged, it is named, and mail goes on
    relay.stop()
    (relay.folder / PROPERTIES).write_bytes(b"no database " * 500)
    relay.start()
    answer = relay.graph("PATCH", path, {"categories": ["x"]}, token="bob")
    assert answer.status == 503
    assert "relay-properties cannot be used" in answer.json()["error"]["message"]
    assert relay.graph("PATCH", path, {"isRead": True}, token="bob").status == 200
    relay.until_final(relay.send_mail(to=["bob@example.test"], subject="next"))
    relay.stop()
    text = f"damaged: {relay.folder / PROPERTIES}: file is not a database; copied as it is"
    done = relay.cli("backup", str(tmp_path / "damaged"))
    assert (done.returncode, done.stderr) == (DATA, f"relay backup: {text}\n")
    for name in ("state", "mail"):
        shutil.rmtree(relay.folder / name)
    done = relay.cli("restore", str(tmp_path / "damaged"))
    assert done.returncode == OK, done.stderr
    assert text in done.stdout.splitlines()
    assert (relay.folder / PROPERTIES).read_bytes() == b"no database " * 500
    relay.start()
    (relay.folder / PROPERTIES).unlink()
    until("the file is new", lambda: categories(relay, path) == [])
    assert relay.graph("PATCH", path, {"categories": ["y"]}, token="bob").status == 200
    assert categories(relay, path) == ["y"]
