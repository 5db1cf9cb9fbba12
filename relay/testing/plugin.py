"""The pytest plugin: fixtures such as `relay`, `internet` and `clock`; the report of a failed test.

The distribution pytest-graph-relay (clients/pytest) makes pytest load it; without that, a project
does: `pytest_plugins = ["relay.testing.plugin"]`. pytest imports it in every run, so it imports no
other module of Relay until a fixture is used. pytest 7.4 or newer.
"""

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from relay.testing.async_relay import AsyncRelay
    from relay.testing.internet import Internet
    from relay.testing.relay import Relay
    from relay.testing.running import VirtualClock

_MARKER = "relay(config=…, policies=…, domains=…): how the relay of this test differs"
_SHARED = "relay_session"
_of_test = pytest.StashKey["Relay"]()
_of_session = pytest.StashKey["Relay"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --relay-artifacts."""
    parser.getgroup("relay").addoption(
        "--relay-artifacts",
        metavar="DIR",
        type=Path,
        help="Keep the journeys and messages of failed tests in DIR. [default: relay-artifacts in "
        "pytest's directory of temporary files]",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line("markers", _MARKER)


@pytest.fixture(scope="session")
def relay_options() -> dict[str, Any]:
    """Return the arguments of Relay for all tests; a project may override this fixture."""
    return {}


@pytest.fixture(scope="session")
def _relay_ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of the certificate authority of all relays of this run."""
    return tmp_path_factory.mktemp("relay-ca")


@pytest.fixture
def relay(
    request: pytest.FixtureRequest, relay_options: dict[str, Any], _relay_ca: Path
) -> Iterator["Relay"]:
    """Run a development relay for only this test."""
    from relay.testing.relay import Relay  # noqa: PLC0415 - see above

    node = request.node
    with Relay(**{"ca_dir": _relay_ca, **relay_options, **_marked(node)}) as started:
        node.stash[_of_test] = started
        yield started
        started.internet.strict = False  # pytest_runtest_call() has checked it


@pytest.fixture(scope="session")
def relay_session(
    request: pytest.FixtureRequest, relay_options: dict[str, Any], _relay_ca: Path
) -> Iterator["Relay"]:
    """Run a development relay for all tests; it is emptied before each test that uses it."""
    from relay.testing.relay import Relay  # noqa: PLC0415 - see above

    with Relay(**{"ca_dir": _relay_ca, **relay_options}) as started:
        request.config.stash[_of_session] = started
        yield started
        started.internet.strict = False
        del request.config.stash[_of_session]


@pytest.fixture
def async_relay(request: pytest.FixtureRequest) -> "AsyncRelay":
    """Return the relay of this test, for coroutines."""
    from relay.testing.async_relay import AsyncRelay  # noqa: PLC0415 - see above

    return AsyncRelay(_relay_for(request))


@pytest.fixture
def relay_django(request: pytest.FixtureRequest) -> Iterator["Relay"]:
    """Make Django send to the relay of this test."""
    from relay.testing.frameworks import django_sends_to  # noqa: PLC0415 - see above

    relay = _relay_for(request)
    with django_sends_to(relay.smtp):
        yield relay


@pytest.fixture
def relay_flask(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> "Relay":
    """Make the application of the fixture `app` send to the relay of this test."""
    from relay.testing.frameworks import configure_flask  # noqa: PLC0415 - see above

    relay = _relay_for(request)
    configure_flask(request.getfixturevalue("app"), relay.smtp, monkeypatch)
    return relay


@pytest.fixture
def internet(request: pytest.FixtureRequest) -> "Internet":
    """Return the simulated internet of the relay of this test."""
    return _relay_for(request).internet


@pytest.fixture
def clock(request: pytest.FixtureRequest) -> "VirtualClock":
    """Return the clock of the relay of this test."""
    return _relay_for(request).clock


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Empty the relay of the session before a test that uses it."""
    shared = item.config.stash.get(_of_session, None)
    if shared is None or _SHARED not in getattr(item, "fixturenames", ()):
        return
    if next(item.iter_markers("relay"), None) is not None:
        raise pytest.UsageError(
            f"{item.nodeid}: the marker relay has no effect on {_SHARED}; use the fixture relay"
        )
    shared.reset()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, None]:
    """Fail a test that passed if there is mail that internet.strict forbids."""
    outcome = yield
    if outcome.excinfo is None:
        for used in _used_by(item):
            try:
                used.check()
            except AssertionError as error:
                outcome.force_exception(error)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, Any, None]:
    """Keep the journeys and messages of a failed test, and show where they are."""
    outcome = yield
    report = outcome.get_result()
    if call.when != "call" or not report.failed:
        return
    for used in _used_by(item):
        from relay.testing.relay import write_artifacts  # noqa: PLC0415 - see above

        report.sections.append(("relay", write_artifacts(used, _artifacts_of(item))))


def _marked(node: pytest.Item) -> dict[str, Any]:
    """Return the arguments of the test's markers; those of the test override the module's."""
    arguments: dict[str, Any] = {}
    for marker in reversed(list(node.iter_markers("relay"))):
        unknown = sorted(marker.kwargs.keys() - {"config", "policies", "domains"})
        if marker.args or unknown:
            what = ", ".join([*map(repr, marker.args), *unknown])
            raise pytest.UsageError(
                f"{node.nodeid}: marker relay: found {what}, expected config, policies or domains"
            )
        arguments |= marker.kwargs
    return arguments


def _relay_for(request: pytest.FixtureRequest) -> "Relay":
    """Return the relay that a test uses: the session's if only that is used, else its own."""
    names = request.fixturenames
    name = _SHARED if _SHARED in names and "relay" not in names else "relay"
    relay: Relay = request.getfixturevalue(name)
    return relay


def _used_by(item: pytest.Item) -> "list[Relay]":
    relays = [item.stash.get(_of_test, None)]
    if _SHARED in getattr(item, "fixturenames", ()):
        relays.append(item.config.stash.get(_of_session, None))
    return [relay for relay in relays if relay is not None]


def _artifacts_of(item: pytest.Item) -> Path:
    """Return the directory for the artifacts of a test; it does not exist."""
    option: Path | None = item.config.getoption("--relay-artifacts")
    if option is None:
        factory = item.config._tmp_path_factory  # type: ignore[attr-defined]  # noqa: SLF001
        parent = Path(factory.getbasetemp()) / "relay-artifacts"
    else:
        parent = item.config.invocation_params.dir / option
    name = "".join(char if char.isalnum() or char in "-_." else "-" for char in item.nodeid)[-150:]
    for number in range(1000):
        place = parent / (f"{name}-{number}" if number else name)
        if not place.exists():
            return place
    return parent / name
