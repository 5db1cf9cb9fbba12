"""What holds for every test.

Properties are checked with the same examples every time, so that a failure is a change's; new ones
come with `make test TESTS="tests/unit --hypothesis-profile=search"`.
"""

import asyncio
import gc
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import certifi
import pytest
import uvloop
from hypothesis import HealthCheck, settings
from hypothesis.internal import entropy
from hypothesis.internal.conjecture import providers

from relay.base.shares import REFUSALS
from relay.store.mailbox.maildir import SYNC_FAILURES
from tests.support.disks import MEMORY, short_place

if TYPE_CHECKING:
    from tests.support.browser import Browser
    from tests.support.dev_process import DevProcess
    from tests.support.postgres import PostgresServer

settings.register_profile(
    "same",
    max_examples=25,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("search", deadline=None, max_examples=5000)
settings.load_profile("same")
# Each process would look for constants in all modules, and another one would change the examples.
providers._get_local_constants = lambda: providers._local_constants
# The first use registers random numbers, and warns if what refers to them is frozen: pytest_collection_finish().
with entropy.deterministic_PRNG():
    pass

collect_ignore = ["sample_project"]  # a project of its own: tests/clients/test_sample_project.py

# Where slow tests are, the slowest first. A line that is out of date costs time and nothing else.
_SLOW = (
    "tests/host/test_install_page.py",
    "tests/pages/",  # in two processes, each to its end
    "tests/security/test_hostile_text.py",
    "tests/host/",
    "tests/postgres/",
    "tests/simulation/",
    "tests/test_tidy.py",
    "tests/integration/test_dev_clock.py",
    "tests/integration/test_session_memory.py",
    "tests/integration/test_shared_work.py",
    "tests/integration/test_webhooks.py",
    "tests/unit/delivery/smtp/test_odd_hosts.py",
    "tests/unit/operation/commands/test_check.py",
    "tests/unit/submission/pickup/test_pickup.py",
    "tests/unit/testing/",
    "tests/unit/transport/checks/test_bounds.py",
    "tests/unit/transport/ingress/test_strangers.py",
    "tests/unit/transport/milter/test_filters.py",
    "tests/unit/test_docs.py",
    "tests/crash/",
    "tests/integration/",
    "tests/unit/operation/cli/test_process.py",
    "tests/interop/",
)

# What differs between the loops would be a fault here: when octets arrive, what a full buffer does,
# how a connection ends.
_ON_BOTH_LOOPS = (
    "tests/dialogue/test_dialogues.py",
    "tests/unit/base/test_sockets.py",
    "tests/unit/delivery/smtp/test_client_protocol.py",
    "tests/unit/delivery/smtp/test_connection.py",
    "tests/unit/delivery/smtp/test_tls.py",
    "tests/unit/front_door/http/",
    "tests/unit/transport/gate/test_backlog.py",
    "tests/unit/transport/ingress/test_early_talkers.py",
    "tests/unit/transport/ingress/test_proxy_header.py",
    "tests/unit/transport/milter/",
)
_LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}
_MEMORY_BYTES = 4 << 30


def pytest_configure() -> None:
    """Keep temporary files in memory where there is room: a sync takes no time there.

    What is lost without a sync is shown by tests that record syncs, not by a disk. In the folders of
    tests are sockets, which have short names only.
    """
    if "TMPDIR" not in os.environ and os.access(MEMORY, os.W_OK):
        system = os.statvfs(MEMORY)
        programs_run = not system.f_flag & os.ST_NOEXEC
        if programs_run and system.f_bavail * system.f_frsize >= _MEMORY_BYTES:
            os.environ["TMPDIR"] = str(MEMORY)
            tempfile.tempdir = None
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", short_place())


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Any]:
    """Run tests on the event loop on which Relay runs. Tests in virtual time make their own loop:
    tests/simulation, test_fairness.py and test_guessing.py.
    """
    names = ("uvloop", "asyncio") if item.nodeid.startswith(_ON_BOTH_LOOPS) else ("uvloop",)
    return {name: _LOOPS[name] for name in names}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put slow tests first, so that those which run last are short."""
    items.sort(key=_rank)


def _rank(item: pytest.Item) -> int:
    found = (n for n, place in enumerate(_SLOW) if item.nodeid.startswith(place))
    return next(found, len(_SLOW))


def pytest_collection() -> None:
    """What is collected stays: no need to look for garbage in it."""
    gc.disable()


def pytest_collection_finish() -> None:
    """What is there before the first test is none of what they leave: no need to look at it."""
    gc.enable()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def nothing_is_abandoned() -> Iterator[None]:
    """A loop, socket or coroutine that nobody ends is this module's failure, not that of the test
    during which it happens to be found. What outlives it is not looked at again.
    """
    yield
    asyncio.set_event_loop(None)
    REFUSALS._last_s.clear()
    vars(SYNC_FAILURES._begun).pop("count", None)  # a test that did a store's work in this thread
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def data_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The development CA of the tests' relays is not that of the tester, and so are those relays."""
    from relay.operation.app import development_folder

    with pytest.MonkeyPatch.context() as patch:
        place = tmp_path_factory.mktemp("data")
        patch.setitem(os.environ, "XDG_DATA_HOME", str(place))
        patch.setattr(development_folder, "_SESSIONS", place)
        patch.setattr(development_folder, "_LINKS", place)
        yield


@pytest.fixture(scope="session", autouse=True)
def one_authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let clients of httpx trust one authority by default: to read all takes each client 40 ms of CPU,
    and none of them issued a certificate of the tests.
    """
    pem, end, _ = Path(certifi.where()).read_text().partition("-----END CERTIFICATE-----\n")
    one = tmp_path_factory.mktemp("authorities") / "one.pem"
    one.write_text(pem + end)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certifi, "where", lambda: str(one))
        patch.delenv("SSL_CERT_FILE", raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def cheap_refusals() -> Iterator[None]:
    """A login of an unknown user takes 60 ms of CPU, like a check of a password: in tests, less. And
    logins of one user from outside are not a second apart.
    """
    from relay.base.accounts import check_queue, directory
    from relay.base.accounts.password_schemes import Password

    cheap = "$argon2id$v=19$m=8,t=1,p=1$cmVsYXlyZWxheXJlbGF5cg$" + "A" * 43
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(directory, "_NOBODY", Password(hashed=cheap))
        patch.setattr(check_queue, "PACE_S", 0.0)
        yield


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder for a state_dir that a test does not choose: sockets have short names only."""
    with tempfile.TemporaryDirectory(prefix="relay-", dir=short_place()) as folder:
        yield Path(folder)


def _for_test_and_module(made: Callable[[], Iterator[Any]]) -> tuple[Any, Any]:
    """Return two fixtures: one for each test, one for each module."""
    return pytest.fixture(made), pytest.fixture(scope="module")(made)


def _serve() -> Iterator[Any]:
    """Starts of `relay serve`: serve(config={...}), serve(remotes, policies={...}), serve(start=False)."""
    from tests.support.relay_process import RelayProcess, several

    with several(RelayProcess) as start:
        yield start


def _dev() -> Iterator[Any]:
    """Starts of `relay dev`: dev("--no-demo", "--strict-users")."""
    from tests.support.dev_process import DevProcess
    from tests.support.relay_process import several

    with several(DevProcess) as start:
        yield start


def _kit() -> Iterator[Any]:
    """Starts of a relay of relay.testing: kit(config={...}, policies={...})."""
    from relay.testing import Relay

    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(Relay(**options))


def _remotes() -> Iterator[Any]:
    """Remote mail servers and their DNS zone, empty at first."""
    from tests.support.remotes import Remotes

    with Remotes() as running:
        yield running


serve, serve_module = _for_test_and_module(_serve)
dev, dev_module = _for_test_and_module(_dev)
kit, kit_module = _for_test_and_module(_kit)
remotes, remotes_module = _for_test_and_module(_remotes)


@pytest.fixture(scope="module")
def plain_dev(dev_module: Any) -> "DevProcess":
    """`relay dev` without its demonstration."""
    return dev_module("--no-demo")


@pytest.fixture(scope="session")
def postgres_server() -> "Iterator[PostgresServer]":
    """PostgreSQL, started by the first test of this process that needs it; nothing is synced."""
    from tests.support.postgres import running_server

    with running_server() as started:
        yield started


@pytest.fixture
def postgres_url(postgres_server: "PostgresServer") -> Iterator[str]:
    """The URL of a database with the tables of a spool, as a start of Relay leaves them."""
    url = postgres_server.create_spool()
    yield url
    postgres_server.drop(url)


@pytest.fixture
def empty_database(postgres_server: "PostgresServer") -> Iterator[str]:
    """The URL of a database without tables, as the first start of Relay finds it."""
    url = postgres_server.create()
    yield url
    postgres_server.drop(url)


@pytest.fixture(scope="session")
def own_address() -> str:
    """An address of this machine that is not on loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this machine has loopback addresses only")
        return str(probe.getsockname()[0])


@pytest.fixture(scope="session")
def one_browser() -> "Iterator[Browser]":
    """Chromium, started by the first test of this process that needs it."""
    pytest.importorskip("selenium", reason="selenium is not installed")
    from tests.support.browser import missing_programs, running_browser

    if missing := missing_programs():
        pytest.skip(f"{missing} not installed: tests/system-packages.sh installs a browser")
    with running_browser() as started:
        yield started


@pytest.fixture
def browser(one_browser: "Browser") -> "Iterator[Browser]":
    """An empty browser: no cookies, no cache, one window, an empty console."""
    one_browser.reset()
    yield one_browser
    one_browser.leave()
