"""A headless Chromium for tests of the pages, with its network log, its console, and axe-core.

Chromium and its driver are programs of the system; nothing is downloaded. One browser serves all tests
of a process, and `reset` gives each test an empty one: no cookies, no cache, one window.

Every name that the browser looks up and every URL that it requests is in Chromium's own network log,
prefetched names and opened connections included. Names are looked up through a DNS server at a closed
port of loopback, so that no lookup leaves the machine.
"""

import contextlib
import itertools
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from selenium.common.exceptions import (
    NoAlertPresentException,
    StaleElementReferenceException,
    WebDriverException,
)
from selenium.webdriver import ActionChains, Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from tests.support.ports import free_port
from tests.support.relay_process import ROOT

AXE = ROOT / ".pages/node_modules/axe-core/axe.min.js"
PATIENCE = 60.0

_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-default-browser-check",
    "--no-proxy-server",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-domain-reliability",
    "--disable-sync",
    "--metrics-recording-only",
    "--force-color-profile=srgb",
    "--hide-scrollbars",
    # One process for all pages: to start one for each site takes a fifth of the processor time.
    "--renderer-process-limit=1",
    "--disable-features=SpareRendererForSitePerProcess,IsolateOrigins,site-per-process",
    "about:blank",
)
_DNS_OVER_HTTPS = "https://127.0.0.1:9"
# What Chromium asks for by itself: updates, the time, its start page.
_OWN_HOSTS = ("google.com", "googleapis.com", "gvt1.com", "duckduckgo.com")
_SIZE = (1200, 900)
_Site = tuple[str | None, int | None]


def missing_programs() -> str:
    """Return which programs are missing, or nothing."""
    return " and ".join(name for name in ("chromium", "chromedriver") if not shutil.which(name))


class Browser:
    """One Chromium. `driver` is selenium's, for what has no method here."""

    def __init__(self, driver: Chrome, network_log: Path):
        self.driver = driver
        self._network_log = network_log
        self._window = driver.current_window_handle
        self._console: list[dict[str, Any]] = []
        self._marker_origin = f"http://127.0.0.1:{free_port()}"
        self._marker_numbers = itertools.count()
        self._opened: set[_Site] = set()
        self._opened_earlier: set[_Site] = set()
        self._read_octets = 0  # of the log
        self._asked: set[str] = set()  # each URL and name in it since the test began

    def reset(self) -> None:
        """Close what is open, forget what is stored and logged."""
        with contextlib.suppress(NoAlertPresentException):
            self.driver.switch_to.alert.accept()
        self.driver.switch_to.window(self._window)
        for handle in self.driver.window_handles:
            if handle != self._window:
                self._close(handle)
        if self.driver.current_url != "about:blank":
            self.open("about:blank")
        self._command("Network.clearBrowserCache")
        self._command("Storage.clearDataForOrigin", origin="*", storageTypes="all")
        self._command("Emulation.setScriptExecutionDisabled", value=False)
        self._command("Emulation.setEmulatedMedia", media="", features=[])
        self.set_time_zone("")
        self.set_width(_SIZE[0])
        self._opened_earlier |= self._opened
        self._opened.clear()
        self._mark_from_blank()
        self._read_network_log()
        self._asked.clear()
        self._read_console()
        self._console.clear()

    def leave(self) -> None:
        """Leave the page: the scripts of a live one would go on until the next test."""
        with contextlib.suppress(WebDriverException):  # the next reset() sees to what is left
            self.driver.switch_to.window(self._window)
            self.driver.get("about:blank")

    def open(self, url: str) -> None:
        """Load a page; return when it and what it includes are loaded."""
        self._opened.add(_site(url))
        self.driver.get(url)

    def wait_for(self, css: str, text: str = "", *, within: float = PATIENCE) -> WebElement:
        """Wait for a visible element that matches, and that contains the text; return it."""

        def found(_: Any) -> WebElement | None:
            matching = self.driver.find_elements("css selector", css)
            return next((one for one in matching if one.is_displayed() and text in one.text), None)

        return self._until(found, f"no visible {css} with {text!r}", within)

    def click(self, css: str, text: str = "") -> None:
        """Click the first visible element that matches; again if the page replaced it meanwhile."""

        def clicked(_: Any) -> bool:
            self.wait_for(css, text).click()
            return True

        self._until(clicked, f"no visible {css} with {text!r} to click", PATIENCE)

    def wait_without(self, css: str, text: str = "", *, within: float = PATIENCE) -> None:
        """Wait until no visible element matches and contains the text."""

        def gone(_: Any) -> bool:
            matching = self.driver.find_elements("css selector", css)
            return not any(one.is_displayed() and text in one.text for one in matching)

        self._until(gone, f"still a visible {css} with {text!r}", within)

    def press(self, *keys: str) -> None:
        """Press keys: text, or those of selenium's Keys; the element with the focus gets them."""
        ActionChains(self.driver).send_keys(*keys).perform()

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression in the page; a promise's when it is there.

        The page's Content-Security-Policy does not apply, nor does `without_javascript`.
        """
        result = self._command(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in result:
            raise AssertionError(json.dumps(result["exceptionDetails"], indent=1))
        return result["result"].get("value")

    def emulate_scheme(self, scheme: str) -> None:
        """Prefer a colour scheme, "light" or "dark"."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._command("Emulation.setEmulatedMedia", media="", features=features)

    def set_width(self, pixels: int, height: int = _SIZE[1]) -> None:
        """Show pages in a window of this width."""
        self._command(
            "Emulation.setDeviceMetricsOverride",
            width=pixels,
            height=height,
            deviceScaleFactor=0,  # the screen's
            mobile=False,
        )

    def set_time_zone(self, name: str) -> None:
        """Be in a time zone of this name (IANA), "" for that of the machine."""
        self._command("Emulation.setTimezoneOverride", timezoneId=name)

    def without_javascript(self) -> None:
        """Run no scripts of the pages that are opened from now on."""
        self._command("Emulation.setScriptExecutionDisabled", value=True)

    def console_errors(self) -> list[str]:
        """Return what the console shows as errors: scripts, resources, refusals by a policy."""
        self._read_console()
        severe = (entry["message"] for entry in self._console if entry["level"] == "SEVERE")
        return [message for message in severe if not message.startswith(self._marker_origin)]

    def requests_elsewhere(self, origin: str) -> list[str]:
        """Return URLs and names outside of an origin for which this test's pages made the browser ask.

        A name that is only looked up, or a connection that is only opened, appears as SCHEME://HOST;
        but not that of an earlier test's page: Chromium remembers it for other ports of its host.
        """
        self._mark()
        self._read_network_log()
        allowed = {_site(origin), _site(self._marker_origin), _site(_DNS_OVER_HTTPS)}
        asked = {
            url
            for url in self._asked
            if url.startswith(("http", "ws"))
            and _site(url) not in allowed
            and not (urlsplit(url).path == "" and _site(url) in self._opened_earlier)
            and not f".{urlsplit(url).hostname}".endswith(tuple(f".{host}" for host in _OWN_HOSTS))
        }
        return sorted(asked)

    def axe(self) -> list[str]:
        """Return what axe-core finds in the page: rule, explanation, and where; [] if it is not installed.

        It is run from outside of the page's policy. Documents in frames are not looked into.
        """
        if not AXE.exists():
            return []
        if self.evaluate("typeof axe") == "undefined":
            self.evaluate(f"{AXE.read_text()}; undefined")
        result = "axe.run({iframes: false, resultTypes: ['violations']})"
        return [
            f"{violation['id']}: {violation['help']}: {node['target']}: {node['failureSummary']}"
            for violation in self.evaluate(f"{result}.then((found) => found.violations)")
            for node in violation["nodes"]
        ]

    def _command(self, name: str, **parameters: Any) -> Any:
        return self.driver.execute_cdp_cmd(name, parameters)

    def _read_console(self) -> None:
        self._console += self.driver.get_log("browser")

    @cached_property
    def _parameters(self) -> dict[int, str]:
        """By type of event, which parameter has what was asked."""
        with self._network_log.open() as log:
            types = json.loads(log.readline().rstrip(",\n") + "}")["constants"]["logEventTypes"]
        return {
            types["URL_REQUEST_START_JOB"]: "url",
            types["HOST_RESOLVER_MANAGER_REQUEST"]: "host",
        }

    def _read_network_log(self) -> None:
        """Read the whole lines that have come."""
        text = self._logged_since(self._read_octets)
        text = text[: text.rfind(b"\n") + 1]
        self._read_octets += len(text)
        for line in text.splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # those around the events
                event = json.loads(line.rstrip(b","))
                value = event.get("params", {}).get(self._parameters.get(event.get("type")))
                if value is not None:
                    self._asked.add(value)

    def _mark(self) -> None:
        """Write a line into the network log, by a request that fails.

        Chromium writes lines in order, some at once: where this one is, the earlier ones are.
        """
        url, size = self._next_mark()
        target = self._command("Target.createTarget", url=url, background=True)["targetId"]
        self._until(lambda _: url.encode() in self._logged_since(size), "no network log", PATIENCE)
        self._close(target)

    def _mark_from_blank(self) -> None:
        """The same from about:blank, without the process that a window takes."""
        url, size = self._next_mark()
        self.evaluate(f"fetch('{url}', {{mode: 'no-cors'}}).catch(() => 0)")
        self._until(lambda _: url.encode() in self._logged_since(size), "no network log", PATIENCE)

    def _next_mark(self) -> tuple[str, int]:
        """Return the URL of a mark, and where the network log ends before it."""
        url = f"{self._marker_origin}/{next(self._marker_numbers)}-"
        return url, self._network_log.stat().st_size

    def _close(self, window: str) -> None:
        self._command("Target.closeTarget", targetId=window)
        still = "a window does not close"
        self._until(lambda _: window not in self.driver.window_handles, still, PATIENCE)

    def _logged_since(self, size: int) -> bytes:
        with self._network_log.open("rb") as log:
            log.seek(size)
            return log.read()

    def _until(self, condition: Callable[[Any], Any], failure: str, within: float) -> Any:
        ignored = [StaleElementReferenceException]
        wait = WebDriverWait(self.driver, within, poll_frequency=0.1, ignored_exceptions=ignored)
        return wait.until(condition, failure)


def _site(url: str) -> _Site:
    """Return host and port."""
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "ws": 80, "https": 443, "wss": 443}.get(parts.scheme)
    return parts.hostname, port


@contextlib.contextmanager
def running_browser(*flags: str) -> Iterator[Browser]:
    """Run Chromium with an empty profile, and with more flags, inside the with block."""
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as folder:
        network_log = Path(folder) / "network.json"
        options = ChromeOptions()
        options.binary_location = str(shutil.which("chromium"))
        for flag in (*flags, *_FLAGS):
            options.add_argument(flag)
        options.add_argument(f"--user-data-dir={folder}/profile")
        options.add_argument(f"--log-net-log={network_log}")
        names = {
            "dns_over_https.mode": "secure",
            "dns_over_https.templates": f"{_DNS_OVER_HTTPS}/dns-query",
        }
        options.add_experimental_option("localState", names)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        environment = {"HOME": folder, "PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}
        service = Service(shutil.which("chromedriver"), env=environment)
        driver = Chrome(options=options, service=service)
        try:
            yield Browser(driver, network_log)
        finally:
            driver.quit()
