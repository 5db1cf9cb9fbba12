"""The development relay's folder: ownership, discovery and content."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from unittest.mock import Mock

import pytest
from cryptography import x509

from relay.base.accounts.accounts_file import load_accounts
from relay.base.clock import SystemClock
from relay.base.settings.reader import load
from relay.base.socket_address import Address
from relay.development import foreground
from relay.development import options as development
from relay.development.authority import (
    PROXY_HOURS,
    PROXY_RENEW_HOURS,
    DevelopmentCertificate,
    open_authority,
)
from relay.development.internet.simulator import SimulatedInternet
from relay.operation.app import development_folder
from relay.operation.app.development_folder import (
    ForeignFolderError,
    OwnEntry,
    link_places,
    linked,
    open_folder,
    running_configs,
)
from relay.operation.app.state_dir import AlreadyRunningError
from relay.operation.commands.check import check_file
from relay.operation.commands.check_network import CheckResult
from tests.support.development_relay import development_relay
from tests.support.events import until
from tests.support.manual_clock import ManualClock
from tests.support.ports import free_port

HTTP = Address("127.0.0.1", free_port(), plain=True)
HTTPS, SMTP = (Address("127.0.0.1", free_port()) for _ in range(2))


def write_config(folder, **options):
    """Write the configuration of a relay that has a certificate."""
    now = datetime.now(UTC)
    open_authority(folder.path / "ca", now=now).issue(folder.path / "tls", (), now=now)
    internet = SimulatedInternet(SystemClock())
    internet.close()  # only its addresses are needed
    options = development.DevelopmentOptions(http=HTTP, https=HTTPS, smtp=SMTP, **options)
    development.write_config(folder, options, internet)
    return load(folder.config, {})


@pytest.fixture(autouse=True)
def temporary(short_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(short_path))
    monkeypatch.setattr(development_folder, "_LINKS", short_path)
    monkeypatch.setattr(development_folder, "_SESSIONS", short_path / "sessions")
    return short_path


@pytest.fixture
def own(temporary):
    return temporary / f"relay-dev-{os.getuid()}"


@pytest.mark.parametrize("kind", ["a link", "a file"])
def test_a_foreign_link_or_file_is_not_touched(own, temporary, kind):
    elsewhere = temporary / "elsewhere"
    elsewhere.mkdir()
    if kind == "a link":
        own.symlink_to(elsewhere)
    else:
        own.touch()
    folder = open_folder(None)
    assert folder.path != own
    folder.remove()
    assert list(elsewhere.iterdir()) == []
    assert own.is_symlink() or own.is_file()


@contextlib.contextmanager
def listening(folder, user=None):
    """Listen where a relay with this directory does."""
    place = folder.path / "state/run/control.sock"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    folder.config.touch()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place))
        os.seteuid(user or os.getuid())
        listener.listen()
        os.seteuid(os.getuid())
        yield


def test_commands_find_relays_that_listen_in_two_places(temporary):
    session = temporary / "sessions" / str(os.getuid())
    session.mkdir(parents=True)
    own, given = open_folder(None), open_folder(temporary / "given")
    with linked(given, of_program=False) as make_links:
        make_links()
        places = {place: place.stat().st_mode & 0o777 for place in link_places()}
        assert places == {session / "relay": 0o700, temporary / f"relay-{os.getuid()}": 0o700}
        shutil.rmtree(session)
        with listening(given):
            for of_program in (False, True):  # sendmail takes the first
                with linked(own, of_program=of_program) as link_own, listening(own):
                    link_own()
                    assert running_configs() == [own.config, given.config][of_program:]
        assert running_configs() == []
        assert list(link_places()[-1].iterdir()) == [], "links to ended relays are removed"


@pytest.mark.parametrize("fault", ["a link", "readable", "place", "directory", "socket"])
def test_commands_trust_nothing_that_another_user_may_have_made(temporary, fault):
    if os.getuid() and fault in ("place", "directory", "socket"):
        pytest.skip("only root can be another user")
    [place], folder, other = link_places(), open_folder(temporary / "given"), 65534
    if fault == "a link":
        place.symlink_to("elsewhere")
    (temporary / "elsewhere" if fault == "a link" else place).mkdir(mode=0o700)
    (place / "planted").symlink_to(folder.path)
    place.chmod(0o755 if fault == "readable" else 0o700)
    if fault == "place":
        os.chown(place, other, other)
    user = other if fault == "socket" else None
    with linked(folder, of_program=False) as make_links, listening(folder, user):
        assert (make_links() == "") == (fault in ("directory", "socket"))
        if fault == "directory":
            os.chown(folder.path, other, other)
        assert running_configs() == []


async def test_a_running_relay_makes_links_again_and_warns_once(temporary, monkeypatch):
    monkeypatch.setattr(foreground, "_RENEWAL_S", 0.001)
    [place], folder, view, free = link_places(), open_folder(None), Mock(), Address("127.0.0.1", 0)
    place.touch()
    options = development.DevelopmentOptions(http=free, https=free, smtp=free)
    run = foreground.RunOptions(no_demo=True)
    running = asyncio.create_task(foreground.develop(folder, options, view, run=run))
    await until(lambda: view.waiting.called)
    place.unlink()
    await until(lambda: running_configs() == [folder.config])
    signal.raise_signal(signal.SIGTERM)
    await running
    view.not_found.assert_called_once_with(folder, f"{place}: File exists")


def test_a_given_folder_stays_and_has_one_relay_at_a_time(temporary):
    place = temporary / "a" / "b"
    folder = open_folder(place)
    with pytest.raises(AlreadyRunningError, match=f"{place} is in use by process {os.getpid()}"):
        open_folder(place)
    write_config(folder)
    folder.remove()
    again = open_folder(place)
    assert again.config.exists()
    again.remove()


@pytest.mark.parametrize("name", ["relay.toml", "accounts.toml", *OwnEntry])
def test_a_directory_with_foreign_files_is_not_touched(temporary, name):
    (temporary / name).write_text("hostname = 'mine'\n")
    with pytest.raises(ForeignFolderError, match=f"{name} was not written by `relay dev`; name"):
        open_folder(temporary)
    assert [one.name for one in temporary.iterdir()] == [name]


async def test_a_relay_makes_only_what_it_refuses_in_a_directory_of_others(temporary):
    target = development.ReleaseTarget.parse("smtps://user:secret@relay.example.org:465")
    async with development_relay(temporary / "dev", release_to=target) as relay:
        await relay.advance_clock(1.0)
        await relay.reset()
        made = {one.name for one in relay.folder.path.iterdir()}
    others = {"run", "relay.toml", "accounts.toml", "search-index-wal", "search-index-shm"}
    assert made == {*OwnEntry, *others} - {"cloud", "no-rules"}


def test_a_start_that_is_killed_before_the_configuration_is_known_at_the_next(temporary):
    killed = open_folder(temporary / "dev")
    (killed.path / "tls").mkdir()
    killed.remove()
    open_folder(killed.path).remove()


def test_the_configuration_is_valid_and_captures_all_mail(temporary):
    folder = open_folder(temporary / '"ü"')
    settings = write_config(folder)
    assert (settings.http.listen, settings.smtp[0].listen) == ((HTTP, HTTPS), SMTP)
    assert [(one.domain, str(one.next_hop)) for one in settings.route] == [("*", "capture")]
    assert all(one.host == "127.0.0.1" for one in (*settings.http.listen, SMTP))
    accounts = load_accounts(
        settings.mailboxes.accounts, settings.mailboxes.domains, clock=SystemClock(), environ={}
    )
    assert accounts.by_token("alice").address == "alice@example.test"
    accounts.close()
    modes = {one.stat().st_mode & 0o777 for one in Path(folder.path).glob("*.toml")}
    assert modes == {0o600}, "others cannot read the tokens"
    verdicts = {one.what: one.verdict for one in check_file(folder.config, {}, SystemClock())}
    assert verdicts["policy"] is CheckResult.OK
    assert CheckResult.FAULT not in verdicts.values()
    assert settings.http.profile == "relaxed"
    assert write_config(folder, like_graph=True).http.profile == "strict"
    folder.remove()


class PassingTime(ManualClock):
    """Time that passes at once when somebody waits, until `hours` have passed."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = 0
        self.is_over = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        if not self.looks:
            self.is_over.set()
            await asyncio.Event().wait()
        self.looks -= 1
        self.advance(seconds)


MINUTE = 1 / 60


async def keep_valid_for(certificate, clock, hours):
    """Let time pass while the certificate is kept valid."""
    clock.looks = round(hours * 60)  # one each minute
    clock.is_over.clear()
    tasks = [asyncio.create_task(one) for one in (certificate.keep_valid(), clock.is_over.wait())]
    done, _ = await asyncio.wait(tasks, timeout=20, return_when=asyncio.FIRST_COMPLETED)
    assert done == {tasks[1]}, "it stopped to keep the certificate valid"
    tasks[0].cancel()


async def test_the_authority_of_the_proxy_is_renewed_also_after_a_failure(tmp_path):
    folder = open_folder(tmp_path / "dev")
    clock = PassingTime()
    certificate = DevelopmentCertificate(
        folder.path, [], ca_dir=None, clock=clock, proxy_names=["graph.test"]
    )
    first, context = certificate.bundle.read_bytes(), certificate.proxy.hosts.context()
    await keep_valid_for(certificate, clock, PROXY_RENEW_HOURS - MINUTE)
    assert certificate.bundle.read_bytes() == first
    tls, away = folder.path / "tls", folder.path / "away"
    tls.rename(away)
    tls.write_bytes(b"")  # nothing can be written
    await keep_valid_for(certificate, clock, 2)
    assert certificate.proxy.hosts.context() is context
    tls.unlink()
    away.rename(tls)
    await keep_valid_for(certificate, clock, MINUTE)
    second = certificate.bundle.read_bytes()
    assert second != first
    assert certificate.proxy.hosts.context() is not context
    authorities = [x509.load_pem_x509_certificates(one) for one in (first, second)]
    assert authorities[0][0] == authorities[1][0], "the ordinary one stays"
    before, now = (each[1] for each in authorities)
    assert before.public_key() == now.public_key(), "who read the first goes on"
    assert before.subject == now.subject
    assert now.not_valid_after_utc.timestamp() == clock.time_us() // 10**6 + PROXY_HOURS * 3600
    folder.remove()
