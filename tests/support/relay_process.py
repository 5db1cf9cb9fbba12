"""`relay serve` as a process of its own, in a folder of its own, and what a test asks it.

    def test_mail_arrives(serve, remotes) -> None:
        a, relay = remotes.start("a.test"), serve(remotes, policies={"10-a.toml": "..."})
        relay.until_final(relay.send_mail(to=["carol@a.test"], subject="hello"))

The fixtures `serve`, and `serve_module` for the relay of a module, start it and close it.

Every port is a free one that the relay took itself; the environment is scrubbed; the process is
ended by its pid and its folder removed, whatever the test did; the log is shown with a failure.
Raises AssertionError with the end of the log when it does not start, stop or come to what is
waited for.
"""

import http.client
import json
import mailbox
import os
import re
import shutil
import signal
import smtplib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from email.message import EmailMessage
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

import httpx

from relay.base.socket_address import Address
from tests.support import relay_starts
from tests.support.graph_client import Answer, message
from tests.support.relay_config import (
    DOMAIN,
    OPERATOR,
    PEOPLE,
    account,
    changed,
    configuration,
    to_toml,
)

if TYPE_CHECKING:
    from tests.support.remotes import Remotes

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 90.0  # of a wait that succeeds; long, since many run at the same time
_LONGEST_PAUSE_S = 0.25
_LOG_LINES = 40


def until(what: str, ready: Callable[[], T], *, timeout_s: float = WAIT_S) -> T:
    """Return the first true value of `ready()`. The longer it takes, the less often it is asked."""
    deadline, pause_s = time.monotonic() + timeout_s, 0.02
    while not (value := ready()):
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.1, _LONGEST_PAUSE_S)
    return value


class RelayProcess:
    """One relay. People are alice, bob, carol and dave @example.test; token and password are the name."""

    new_spool_url: ClassVar[Callable[[], str] | None] = (
        None  # where each has its spool; None: in its folder
    )
    smtp_gate: ClassVar[str] = "auto"
    sockets: Sequence[tuple[str, socket.socket]] = ()  # as from systemd
    user = 0  # the number of the user as whom root starts it, who then has its folder
    empty_spool: ClassVar[Callable[[str], None] | None] = None  # removes all from the spool there

    def __init__(
        self,
        remotes: "Remotes | None" = None,
        *,
        dns: Address | None = None,
        mx_port: int = 25,
        config: Mapping[str, Any] | None = None,
        policies: Mapping[str, str] | None = None,
        accounts: Sequence[Mapping[str, Any]] = (),
        aliases: Mapping[str, Sequence[str]] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Take the DNS server and the port of `remotes`, if given. `config` changes the one below key
        by key; `accounts` come on top of the usual ones; `aliases` lead from an address
        to others.
        """
        if remotes is not None:
            dns, mx_port = remotes.dns.address, remotes.port or mx_port
        self.folder = Path(tempfile.mkdtemp(prefix="relay-test-"))
        self.config_file = self.folder / "relay.toml"
        self.process: relay_starts.Started | None = None
        self.ready: dict[str, Any] = {}
        self.options: Sequence[str] = ()  # of its command
        self._environment = dict(environment or {})
        usual_config = configuration(dns, mx_port) | {"smtp_gate": self.smtp_gate}
        self.config = changed(usual_config, config or {})
        if self.new_spool_url is not None:
            self.config = changed(self.config, {"spool": {"url": type(self).new_spool_url()}})
        self.write_config(self.config)
        usual = [account(name) for name in PEOPLE] + [account(OPERATOR, role="operate")]
        accounts_file = self.folder / "accounts.toml"
        alias = [{"address": one, "to": [*to]} for one, to in (aliases or {}).items()]
        aliased = {"alias": alias} if alias else {}
        accounts_file.write_text(to_toml({"account": [*usual, *accounts]} | aliased))
        accounts_file.chmod(0o600)
        for name in ("policies", "state", "mail"):
            (self.folder / name).mkdir(mode=0o700)
        for name, text in (policies or {}).items():
            (self.folder / "policies" / name).write_text(text)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write relay.toml."""
        self.config_file.write_text(to_toml(config))

    # -- its life
    def start(self, *, crash_at: str = "", wait: bool = True) -> Self:
        """Start the process and wait until it listens; `crash_at` is RELAY_CRASH_AT."""
        assert self.process is None or self.process.poll() is not None, "it runs already"
        ready_file = self.folder / "ready.json"
        ready_file.unlink(missing_ok=True)
        command = [*self.start_command(), "--ready-file", str(ready_file)]
        crash = {"RELAY_CRASH_AT": crash_at} if crash_at else {}
        if self.user:
            for path in (self.folder, *self.folder.rglob("*")):
                os.chown(path, self.user, self.user, follow_symlinks=False)
        with (self.folder / "relay.log").open("ab") as log:
            self.process = relay_starts.start(
                command,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                env=self.environment | crash,
                user=self.user,
                sockets=self.sockets,
            )
        if wait:
            until("ready, or ended", lambda: ready_file.exists() or self.process_ended)
            assert ready_file.exists(), f"it ended with {self.process.poll()}\n{self.log_tail()}"
            self.ready = json.loads(ready_file.read_text())
        return self

    def stop(self, *, timeout_s: float = WAIT_S) -> int:
        """SIGTERM; return the exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.wait_end(timeout_s=timeout_s)

    def kill(self) -> None:
        """Kill -9."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    def restart(self, *, crash_at: str = "") -> Self:
        """Kill -9 and start again."""
        self.kill()
        return self.start(crash_at=crash_at)

    def come_up(self, crash_at: str) -> None:
        """Start it; it may die at this point, also before it is ready."""
        self.start(crash_at=crash_at, wait=False)
        ready = self.folder / "ready.json"
        until("ready, or ended", lambda: ready.exists() or self.process_ended, timeout_s=60)
        if ready.exists():
            self.ready = json.loads(ready.read_text())

    def wait_end(self, *, timeout_s: float = WAIT_S) -> int:
        """Wait until the process ended by itself; return its exit code, negative for a signal."""
        assert self.process is not None
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"still running after {timeout_s:g} s\n{self.log_tail()}"
            ) from None

    def wait_crash(self) -> None:
        """Wait until it, or its process of the SMTP sessions, has died at a crash point; kill -9."""
        until("a process has died", lambda: self.process_ended or self.faults())
        self.kill()
        assert self.wait_end() == -signal.SIGKILL

    def close(self) -> None:
        """End it, remove its folder; the end of the log goes where pytest shows it with a failure."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()
        sys.stderr.write(f"--- the relay's last log lines\n{self.log_tail()}\n")
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def process_ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    @property
    def environment(self) -> dict[str, str]:
        """What the process sees: nothing of the tester's own RELAY_*, systemd's or Python's settings."""
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "TZ") if name in os.environ}
        own = {"HOME": str(self.folder), "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
        return kept | own | self._environment

    @property
    def log(self) -> str:
        path = self.folder / "relay.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def faults(self, *, but: str = "\0") -> list[str]:
        """The log's lines that tell of a fault of ours, `but` those with a text; what is no JSON is
        one as well.
        """
        lines = [one for one in self.log.splitlines() if but not in one]
        return [one for one in lines if not one.startswith("{") or '"level":"error"' in one]

    @property
    def gate_pid(self) -> int:
        """The process of the SMTP sessions; the last one that was ready."""
        return int(re.findall(r'"event":"SMTP sessions have a process","pid":(\d+)', self.log)[-1])

    def log_tail(self) -> str:
        return "\n".join(self.log.splitlines()[-_LOG_LINES:])

    # -- HTTP
    @property
    def url(self) -> str:
        """The URL of its pages and of its API, without a path."""
        return f"http://{self.ready['http'][0]}"

    def get(self, path: str, token: str = "alice", **more: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}"}
        return httpx.get(self.url + path, headers=headers, trust_env=False, **more)

    @property
    def http(self) -> tuple[str, int]:
        """Host and port."""
        return _host_port(self.ready["http"][0])

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        timeout_s: float = WAIT_S,
    ) -> Answer:
        connection = http.client.HTTPConnection(*self.http, timeout=timeout_s)
        try:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def graph(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str = "alice",
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One call below /v1.0, or any other path that begins with /relay; a body that is not bytes is sent as JSON."""
        sent = {"Authorization": f"Bearer {token}"} if token else {}
        if body is not None and not isinstance(body, bytes):
            body, sent["Content-Type"] = json.dumps(body).encode(), "application/json"
        path = path if path.startswith("/relay") else "/v1.0" + path
        return self.request(method, path, body, sent | dict(headers or {}))

    def send_mail(self, *, token: str = "alice", save: bool = True, **properties: Any) -> str:
        """POST /me/sendMail with message(**properties); return its Graph id."""
        body = {"message": message(**properties), "saveToSentItems": save}
        answer = self.graph("POST", "/me/sendMail", body, token=token)
        assert (answer.status, answer.body) == (202, b""), (
            f"sendMail: {answer.status} {answer.body!r}"
        )
        return answer.headers["x-relay-message-id"]

    def messages(self, folder: str, *, token: str = "alice") -> list[dict[str, Any]]:
        """A folder's messages as Graph lists them."""
        answer = self.graph("GET", f"/me/mailFolders/{folder}/messages?$top=500", token=token)
        assert answer.status == 200, f"{folder}: {answer.status} {answer.body!r}"
        return list(answer.json()["value"])

    def journey(self, key: str) -> dict[str, Any]:
        """The journey of a message that is known."""
        answer = self.graph("GET", f"/relay/v1/messages/{key}", token=OPERATOR)
        assert answer.status == 200, f"journey of {key}: {answer.status} {answer.body!r}"
        return dict(answer.json())

    def states(self, key: str) -> dict[str, str]:
        """Recipient -> state."""
        return {one["address"]: one["state"] for one in self.journey(key)["recipients"]}

    def until_state(self, key: str, state: str) -> dict[str, Any]:
        """Wait until a message is in `state`; return its journey."""
        path = f"/relay/v1/messages/{key}/wait?state={state}&timeout={WAIT_S:g}"
        headers = {"Authorization": f"Bearer {OPERATOR}"}
        answer = self.request("GET", path, headers=headers, timeout_s=WAIT_S + 10)
        assert answer.status == 200, f"wait for {key}: {answer.status} {answer.body!r}"
        found = dict(answer.json())
        assert found["reached"], f"{key} is still {found['state']}, expected {state}: {found}"
        return found

    def until_final(self, key: str) -> dict[str, Any]:
        """Wait until every recipient of a message is in a final state; return its journey."""
        return self.until_state(key, "final")

    def cpu_s(self) -> float:
        """The processor time that it has used, its threads included (proc(5): utime, stime)."""
        assert self.process is not None
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_bytes(self, *, reset: bool = False) -> int:
        """The most that its process has had in memory since its start, or the last reset (proc(5))."""
        assert self.process is not None
        place = Path(f"/proc/{self.process.pid}")
        if reset:
            (place / "clear_refs").write_text("5")
        return 1024 * int((place / "status").read_text().partition("VmHWM:")[2].split()[0])

    def queue(self) -> list[dict[str, Any]]:
        """What is not final yet."""
        answer = self.graph("GET", "/relay/v1/queue", token=OPERATOR)
        assert answer.status == 200, f"queue: {answer.status} {answer.body!r}"
        return list(answer.json())

    def exposition(self) -> str:
        """What /metrics says."""
        answer = self.request("GET", "/metrics")
        assert answer.status == 200
        return answer.body.decode()

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric over the samples that have `labels`."""
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        samples = re.findall(rf"^{name}(\{{[^}}]*\}})? (\S+)$", self.exposition(), re.MULTILINE)
        return sum(
            float(value) for reported, value in samples if all(one in reported for one in wanted)
        )

    # -- SMTP
    def smtp_address(self, listener: int = 0) -> tuple[str, int]:
        """Host and port of a listener."""
        return _host_port(self.ready["smtp"][listener])

    def smtp(self, *, source: str = "127.0.0.1", listener: int = 0) -> smtplib.SMTP:
        """A session; from any `source` but 127.0.0.1 it is a stranger's."""
        host, port = self.smtp_address(listener)
        return smtplib.SMTP(host, port, "client.test", WAIT_S, source_address=(source, 0))

    def submit(
        self,
        sender: str,
        recipients: Sequence[str],
        content: bytes | EmailMessage = b"Subject: hello\r\n\r\nHello.\r\n",
        *,
        source: str = "127.0.0.1",
        mail_options: Sequence[str] = (),
        rcpt_options: Sequence[str] = (),
    ) -> str:
        """One message by SMTP, for all recipients; return its queue id. Raises AssertionError for any refusal."""
        data = bytes(content) if isinstance(content, EmailMessage) else content
        with self.smtp(source=source) as session:
            session.ehlo()
            _expect(250, session.mail(sender, list(mail_options)))
            for recipient in recipients:
                _expect(250, session.rcpt(recipient, list(rcpt_options)))
            reported = _expect(250, session.data(data))
        return reported.rpartition(" ")[2]

    # -- disk
    def home(self, person: str) -> Path:
        """Somebody's Maildir."""
        return self.folder / "mail" / DOMAIN / person

    def maildir(self, person: str = "alice", folder: str = "") -> list[mailbox.MaildirMessage]:
        """The messages of a Maildir, as the stdlib reads it; `folder` is "", "Sent", "Drafts" ..."""
        home = self.home(person)
        place = home / f".{folder}" if folder else home
        if not all((place / part).is_dir() for part in ("cur", "new")):  # it may be made just now
            return []
        box = mailbox.Maildir(home, create=False)
        return list(box.get_folder(folder) if folder else box)

    def subjects(self, person: str = "alice", folder: str = "") -> list[str]:
        """The subjects in a Maildir, sorted."""
        return sorted(str(one["subject"]) for one in self.maildir(person, folder))

    def pending_submissions(self) -> list[Path]:
        """What is in .submissions/preparing and ready."""
        submissions = self.folder / "mail" / ".submissions"
        return [*submissions.glob("preparing/*"), *submissions.glob("ready/*")]

    def scheduled_submissions(self) -> list[Path]:
        """What is in .submissions/deferred."""
        return list((self.folder / "mail" / ".submissions").glob("deferred/*"))

    # -- the command line
    def cli(
        self, *words: str, stdin: str = "", timeout_s: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run a relay command with --config, unless that is among its words."""
        return relay_starts.run(
            self.command(*words),
            cwd=self.folder,
            env=self.environment,
            stdin=stdin,
            timeout_s=timeout_s,
        )

    def sendmail(self, sender: str, *to: str, text: str) -> subprocess.CompletedProcess[str]:
        """Run `relay sendmail`, which leads to its first listener."""
        place = {"RELAY_SENDMAIL": "{}:{}".format(*self.smtp_address())}
        return relay_starts.run(
            [*relay_starts.RELAY, "sendmail", "-i", f"-f{sender}", *to],
            cwd=self.folder,
            env=relay_starts.environment(self.folder) | place,
            stdin=text,
        )

    def cli_json(self, *words: str) -> Any:
        """Run a relay command with --json that succeeds; return its document."""
        done = self.cli(*words, "--json")
        assert done.returncode == 0, f"relay {' '.join(words)}: {done.returncode} {done.stderr}"
        return json.loads(done.stdout)

    def adopt_mail_root(self) -> None:
        """Accept the empty directory that is the mail root now, while the relay is stopped."""
        done = self.cli("storage", "adopt", "new", "--yes")
        assert done.returncode == 0, done.stderr

    def client_config(self) -> Path:
        """The same configuration with the ports that were really taken, for `relay send`."""
        listeners = zip(self.config["smtp"], self.ready["smtp"], strict=True)
        real = {
            "http": self.config["http"] | {"listen": self.ready["http"]},
            "smtp": [one | {"listen": taken} for one, taken in listeners],
        }
        path = self.folder / "client.toml"
        path.write_text(to_toml(self.config | real))
        return path

    def start_command(self) -> list[str]:
        return self.command("serve", *self.options)

    def command(self, *words: str) -> list[str]:
        config = () if "--config" in words else ("--config", str(self.config_file))
        return [*relay_starts.RELAY, *words, *config]


def _host_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _expect(code: int, reply: tuple[int, bytes]) -> str:
    text = reply[1].decode("utf-8", "replace")
    assert reply[0] == code, f"expected {code}, found {reply[0]} {text}"
    return text


@contextmanager
def several(kind: Callable[..., RelayProcess]) -> "Iterator[Callable[..., Any]]":
    """Yield a function that makes a relay and, unless start=False, starts it; close all at the end."""
    with ExitStack() as stack:

        def made(*words: Any, start: bool = True, **options: Any) -> RelayProcess:
            relay = kind(*words, **options)
            stack.callback(relay.close)
            return relay.start() if start else relay

        yield made
