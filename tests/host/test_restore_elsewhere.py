"""`relay restore` on another machine: directories as they were, consent, hostile backups, its checks."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from click.testing import CliRunner, Result

from relay.operation.cli.root import cli
from relay.operation.commands import restore
from tests.support import relay_starts
from tests.support.disks import short_place
from tests.support.dns_server import DnsThread
from tests.support.relay_config import account, to_toml
from tests.support.terminals import open_terminal
from tests.support.tls import Authority, authority

__all__ = ["authority"]

OK, USAGE, DATA, CONFIGURATION = 0, 64, 65, 78
SERVICE = 65534  # the user of the service


class Service:
    """A service below `top`, which never ran, and its backup. Its host name is in `away`."""

    def __init__(self, top: Path, authority: Authority, dns: DnsThread) -> None:
        self.copy, self.home, self.state = top / "copy", top / "etc/relay", top / "lib/relay"
        self.away, self.tls, self.rules = top / "away", self.home / "tls", self.home / "rules"
        self.file, self.name, self.key = (
            self.home / "relay.toml",
            self.away / "name",
            self.tls / "x.key",
        )
        for one in (self.tls, self.rules / "groups", self.away, self.state / "mail"):
            one.mkdir(parents=True)
        made = authority.issue("DNS:relay.example.test")
        shutil.copy(made.certificate, self.tls / "x.crt")
        shutil.copy(made.key, self.key)
        tls = {"certificate": "tls/x.crt", "key": "tls/x.key"}
        config = {
            "hostname": f"${{file:{self.name}}}",
            "state_dir": str(self.state),
            "http": {"listen": ["127.0.0.1:0"]},
            "smtp": [{"listen": "127.0.0.1:0", "tls": tls}],
            "mailboxes": {"domains": ["example.test"], "root": str(self.state / "mail")},
            "dns": {"nameservers": [str(dns.address)]},
            "policy": {"directory": "rules"},
        }
        self.name.write_text("relay.example.test\n")
        self.file.write_text(to_toml(config))
        (self.home / "accounts.toml").write_text(to_toml({"account": [account("alice")]}))
        self.environment = relay_starts.environment(top) | {"RELAY_CONFIG": str(self.file)}
        top.chmod(0o755)
        for one in top.rglob("*"):
            one.chmod(0o750 if one.is_dir() else 0o640)
            if not os.geteuid():
                os.chown(one, 0, SERVICE)
        if not os.geteuid():
            for one in (self.state, self.state / "mail"):
                os.chown(one, SERVICE, SERVICE)

    def run(self, *words: str) -> "subprocess.CompletedProcess[str]":
        command = [*relay_starts.RELAY, *words]
        return relay_starts.run(command, cwd=self.copy.parent, env=self.environment)

    def back_up(self) -> None:
        done = self.run("backup", str(self.copy))
        assert done.returncode == OK, done.stderr

    def go(self, *kept: Path) -> None:
        """Remove all but the backup."""
        for one in (self.home.parent, self.state.parent, self.away):
            if one not in kept:
                shutil.rmtree(one)

    def restore(self, *words: str) -> "subprocess.CompletedProcess[str]":
        return self.run("restore", str(self.copy), *words)

    def facts(self) -> dict[str, tuple[int, int, int]]:
        """Mode and owner of the configuration and of all above it and state_dir."""
        top = self.copy.parent
        found = [one for one in top.rglob("*") if not one.is_relative_to(self.copy)]
        found = [one for one in found if self.state not in one.parents]
        return {str(one): (s.st_mode, s.st_uid, s.st_gid) for one in found for s in [one.lstat()]}


@pytest.fixture
def service(authority: Authority) -> Iterator[Service]:
    with TemporaryDirectory(dir=short_place()) as folder, DnsThread() as dns:
        yield Service(Path(folder), authority, dns)


def test_directories_have_the_owner_and_the_mode_that_they_had(service: Service) -> None:
    service.tls.chmod(0o710)
    service.rules.chmod(0o2750)
    service.away.chmod(0o751)
    before = service.facts()
    service.back_up()
    service.go()
    done = service.restore("--yes")
    assert done.returncode == OK, done.stderr
    assert service.facts() == before


def test_what_is_outside_the_service_is_listed_and_needs_consent(service: Service) -> None:
    service.back_up()
    service.go()
    done = service.restore()
    assert (done.returncode, "expected --yes" in done.stderr) == (USAGE, True), done.stderr
    listed = [one.strip() for one in done.stderr.splitlines() if one.startswith("  ")]
    assert listed == [str(service.away), str(service.name)]
    assert list(service.copy.parent.iterdir()) == [service.copy]


def test_files_as_the_package_has_installed_them_are_replaced(service: Service, monkeypatch):
    service.back_up()
    wanted = [service.file.read_text(), (service.home / "accounts.toml").read_text()]
    service.go(service.away)
    service.home.mkdir(parents=True)
    shipped = service.copy.with_name("shipped.toml")
    shipped.write_text("# the package's\n")
    shutil.copy(shipped, service.file)
    (service.home / "accounts.toml").touch()
    fresh = tree(service.home)
    monkeypatch.setattr(restore, "_OF_PACKAGE", shipped)
    monkeypatch.delenv("RELAY_CONFIG", raising=False)

    def restored() -> Result:
        return CliRunner().invoke(cli, ["restore", str(service.copy)], standalone_mode=False)

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as failing:
        failing.setattr(restore, "_restore", fail)
        assert isinstance(restored().exception, OSError)
    assert tree(service.home) == fresh
    service.file.write_text("# mine\n")
    assert restored().exception.code == USAGE
    shutil.copy(shipped, service.file)
    done = restored()
    assert (
        f"renamed, as it was that of a new installation: {service.file}.before-restore"
        in done.stdout
    )
    files = [service.file, service.home / "accounts.toml"]
    assert [file.read_text() for file in files] == wanted
    aside = [file.with_name(f"{file.name}.before-restore").read_text() for file in files]
    assert aside == ["# the package's\n", ""]


def tree(folder: Path) -> dict[str, str]:
    return {str(path): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("answer", "code"), [("n\n", USAGE), ("y\n", OK)])
def test_a_terminal_is_asked(service: Service, answer: str, code: int) -> None:
    service.back_up()
    service.go()
    ours, theirs = open_terminal()
    command = [*relay_starts.RELAY, "restore", str(service.copy)]
    process = relay_starts.start(
        command, cwd=service.copy.parent, env=service.environment, stdin=theirs
    )
    os.close(theirs)
    os.write(ours, answer.encode())
    assert process.wait(60) == code
    os.close(ours)
    assert service.home.exists() == service.name.exists() == (code == OK)


def test_a_backup_cannot_hide_where_it_writes(service: Service) -> None:
    service.back_up()
    file = service.copy / "manifest.json"
    manifest = json.loads(file.read_text())
    service.go(service.away)
    for name in (f"{service.home}/../evil", f"//evil-{os.getpid()}", f"evil-{os.getpid()}"):
        place = os.path.normpath("/" + name.lstrip("/"))
        files = manifest["config_files"]
        hidden = {"config_files": [*files, files[0] | {"path": name}]}
        file.write_text(json.dumps(manifest | hidden))
        done = service.restore()
        assert (done.returncode, f"  {place}\n" in done.stderr) == (USAGE, True), done.stderr
        assert not os.path.lexists(place)
        assert not service.home.exists()


def test_a_backup_with_a_symbolic_link_is_refused(service: Service) -> None:
    service.back_up()
    service.go(service.away)
    for name in ("mail/link", "config/link", "state/link", "mail/x.test"):
        link = service.copy / name
        link.symlink_to(service.copy.parent)
        done = service.restore()
        found = f"found {link} (l" in done.stderr
        assert (done.returncode, found) == (DATA, True), done.stderr
        assert not service.home.exists()
        link.unlink()


def test_a_file_is_not_written_through_a_link(service: Service) -> None:
    service.back_up()
    service.go(service.away)
    service.tls.mkdir(parents=True)
    service.key.symlink_to(service.copy.parent / "elsewhere")
    done = service.restore()
    assert (done.returncode, f"found {service.key}" in done.stderr) == (USAGE, True), done.stderr
    assert not (service.copy.parent / "elsewhere").exists()


@pytest.mark.parametrize("place", ["key", "rules", "away"])
def test_root_sees_what_the_service_cannot_read(service: Service, place: str) -> None:
    if os.geteuid():
        pytest.skip("only root can become another user")
    checked = service.run("check")
    assert "fault" not in checked.stderr, checked.stderr
    os.chown(getattr(service, place), 0, 0)
    checked = service.run("check")
    assert checked.returncode == CONFIGURATION, checked.stderr
    service.back_up()
    service.go()
    done = service.restore("--yes")
    assert (done.returncode, "the mail is restored" in done.stderr) == (CONFIGURATION, True)
    faults = [one for one in checked.stderr.splitlines() if "ermission" in one]
    assert faults
    assert set(faults) <= set(done.stderr.splitlines())
    assert service.key.exists()
