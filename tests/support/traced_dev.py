"""`relay dev` below strace: which addresses does it name in its system calls?"""

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.dev_process import DevProcess

_SOCKADDR = re.compile(
    r"sa_family=(?P<family>AF_\w+)"
    r"(?:.*?(?:inet_addr|inet_pton)\((?:AF_INET6, )?\"(?P<address>[^\"]+)\")?"
)
_FAMILIES = {"AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK", "AF_UNSPEC"}


class TracedDev(DevProcess):
    """`relay dev` below strace, from its first system call."""

    def __init__(self, *options: str) -> None:
        super().__init__(*options)
        self.trace = Path(tempfile.mkdtemp(prefix="relay-trace-")) / "trace"

    def start_command(self) -> list[str]:
        calls = "trace=connect,sendto,sendmsg,sendmmsg"
        return ["strace", "-D", "-f", "-qq", "--seccomp-bpf", "-o", str(self.trace), "-e", calls,
                *super().start_command()]  # fmt: skip

    def stop_and_see_hosts(self) -> set[str]:
        """The IPv4 addresses that it named until its end; every address must be on loopback."""
        assert self.stop() == 0
        found = (_SOCKADDR.search(line) for line in self.trace.read_text().splitlines())
        seen = {(one["family"], one["address"] or "") for one in found if one}
        hosts = {address for family, address in seen if family == "AF_INET"}
        assert {one for one in hosts if not one.startswith("127.")} == set()
        assert {address for family, address in seen if family == "AF_INET6"} <= {"::1"}
        assert {family for family, _ in seen} <= _FAMILIES
        return hosts


@contextmanager
def traced_dev(*options: str) -> Iterator[TracedDev]:
    """Run it in the with block; without strace the test is skipped."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    relay = TracedDev(*options)
    try:
        with relay:
            yield relay
    finally:
        shutil.rmtree(relay.trace.parent)
