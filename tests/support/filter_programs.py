"""rspamd, ClamAV, OpenDKIM and OpenDMARC as milters, each in a folder of its own, on a loopback port.

    with FilterPrograms(files) as programs:
        ... programs.ports["11332"] is where the milter of that port in the files listens ...

`files` are configurations by their paths under /etc, as they are written for an installed system: ports and
paths are exchanged for others. `make test` unpacks Debian's packages into .system, because installed ones
start services. The signatures are one of the test file EICAR; rspamd asks the name server `dns`, the others
read the records `keys` and `policies`. Raises NoFilterError, with the reason to skip, where one is missing.
"""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from relay.base.socket_address import Address
from tests.support.ports import free_port
from tests.support.relay_process import WAIT_S, until
from tests.support.unpacked import UNPACKED, unpacked_libraries

EICAR = rb"X5O!P%@AP[4\PZX54(P^)7CC)7}$EICAR-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*"
_SIGNATURE = "44d88612fea8a8f36de82e1278abb02f:68:Eicar-Test\n"
_CLAMD = """\
Foreground yes
LocalSocket {folder}/clamd.ctl
DatabaseDirectory {folder}/signatures
"""
# without name servers of others, and without the compilation of 9,000 suffixes and all patterns
_OPTIONS = """\
dns {{ nameserver = ["{dns}"]; }}
url_tld = "{folder}/suffixes";
disable_hyperscan = true;
filters = "chartable,dkim,regexp";
enable_test_patterns = true;
"""
_OFF = "enabled = false;\n"
_OWNER = re.compile(r"^(User|UserID) .*\n", re.MULTILINE)
_PORT = re.compile(r"(inet:|127\.0\.0\.1:)(\d+)")


class NoFilterError(Exception):
    """A program is not there; the text says what to do."""


def _program(name: str) -> str:
    for folder in ("/usr", UNPACKED):
        for place in ("sbin", "bin"):
            if (path := Path(folder, place, name)).exists():
                return str(path)
    raise NoFilterError(f"{name} is not installed: tests/system-packages.sh")


class FilterPrograms:
    """The programs while they run. `ports` has the port of each one that the files name."""

    def __init__(
        self,
        files: Mapping[str, str],
        *,
        dns: Address,
        keys: Mapping[str, str],
        policies: Mapping[str, str],
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="relay-filters-"))
        self.ports = {
            port: free_port() for text in files.values() for _, port in _PORT.findall(text)
        }
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        own = {
            "clamd.conf": _CLAMD.format(folder=self.folder),
            "signatures/own.hdb": _SIGNATURE,
            "suffixes": "test\n",
            "keys": "".join(f"{name} {text}\n" for name, text in keys.items()),
            "policies": "".join(f"{name} {text}\n" for name, text in policies.items()),
            "rspamd/local.d/options.inc": _OPTIONS.format(
                folder=self.folder, dns=f"{dns.host}:{dns.port}"
            ),
            "rspamd/local.d/worker-normal.inc": _OFF,
            "rspamd/local.d/worker-controller.inc": _OFF,
            "rspamd/local.d/rbl.conf": _OFF,
        }
        more = {
            "clamav/clamav-milter.conf": "Foreground yes\n",
            "opendkim.conf": f"TestPublicKeys {self.folder}/keys\n",
            "opendmarc.conf": f"TestDNSData {self.folder}/policies\n",
        }
        given = {name: self.here(text) + more.get(name, "") for name, text in files.items()}
        for name, text in {**own, **given}.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def here(self, text: str) -> str:
        """Return a text in which ports and the files in /run are those of the test."""
        text = _PORT.sub(lambda found: f"{found[1]}{self.ports[found[2]]}", _OWNER.sub("", text))
        return re.sub(r"/run/(?:clamav|opendkim|opendmarc)/", f"{self.folder}/", text)

    def __enter__(self) -> Self:
        try:
            self._start_all()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name, process in self.processes.items():
            if name == "rspamd":  # ends its workers
                process.terminate()
            else:  # libmilter ends within five seconds
                process.kill()
            process.wait(WAIT_S)
        shutil.rmtree(self.folder, ignore_errors=True)

    def output(self, name: str) -> str:
        """What a program printed."""
        return (self.folder / f"{name}.out").read_text(errors="replace")

    def _start_all(self) -> None:
        folder = self.folder
        self._start("clamd", "-c", folder / "clamd.conf")
        self._start("opendkim", "-f", "-x", folder / "opendkim.conf")
        self._start("opendmarc", "-f", "-c", folder / "opendmarc.conf")
        self._start_rspamd()
        until("clamd listens", lambda: self._is_open("clamd", str(folder / "clamd.ctl")))
        self._start("clamav-milter", "-c", folder / "clamav/clamav-milter.conf")
        for port in self.ports.values():
            until(f"port {port} is open", lambda port=port: self._is_open("", port))

    def _start_rspamd(self) -> None:
        share = next(
            one for one in (Path("/usr/share/rspamd"), UNPACKED / "share/rspamd") if one.exists()
        )
        etc = next(
            one for one in (Path("/etc/rspamd"), UNPACKED.parent / "etc/rspamd") if one.exists()
        )
        places = {
            name: share / name.removesuffix("DIR").lower()
            for name in ("LUALIBDIR", "PLUGINSDIR", "RULESDIR")
        }
        places |= {"SHAREDIR": share, "CONFDIR": etc, "LOCAL_CONFDIR": self.folder / "rspamd"}
        places |= dict.fromkeys(("DBDIR", "RUNDIR", "LOGDIR"), self.folder)
        variables = [f"--var={name}={place}" for name, place in places.items()]
        environment = {name: str(place) for name, place in places.items()}
        self._start(
            "rspamd", "-f", "-i", "-c", etc / "rspamd.conf", *variables, environment=environment
        )

    def _start(
        self, name: str, *words: object, environment: Mapping[str, str] | None = None
    ) -> None:
        # a name server that does not answer takes OpenDMARC's time: its SPF asks that of the system
        own = {**unpacked_libraries(), "RES_OPTIONS": "timeout:1 attempts:1", **(environment or {})}
        with (self.folder / f"{name}.out").open("wb") as out:
            self.processes[name] = subprocess.Popen(
                [_program(name), *map(str, words)],
                env=os.environ | own,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )

    def _is_open(self, name: str, place: str | int) -> bool:
        for each, process in self.processes.items():
            assert process.poll() is None, f"{each} has ended: {self.output(each)}"
        kind = socket.AF_UNIX if isinstance(place, str) else socket.AF_INET
        with socket.socket(kind) as probe, contextlib.suppress(OSError):
            probe.connect(place if isinstance(place, str) else ("127.0.0.1", place))
            return True
        return False
