"""One relay on SQLite, and 1 to 3 nodes on PostgreSQL that share a listening socket, by socket and by TLS.

    make bench ARGS=nodes                               three rounds of `small`, commit_delay 0 and 500
    make bench ARGS="nodes --workload burst --rounds 5"

The nodes have no mailboxes, one state_dir each, and inherit the socket as from systemd. All systems
run all the time, and are loaded in turn. Printed are messages a second, busy cores of the machine, and
processor time a message: of the relays, of the server, and of the relays' event loops; `of socket` is
that of relays and server, through TLS, to that through a socket. For more cores the rate is computed, not measured, from the times, with the number of nodes that it takes: an event
loop fills at most one core. It leaves out the load's source and sink, and syncs and locks of the server.
"""

import argparse
import math
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench.side_by_side import kit, write_template
from tests.support.postgres import PostgresServer, database_of
from tests.support.relay_process import until
from tests.support.tls import new_authority

ONE = "SQLite"
NODES = (1, 2, 3)
TLS = ", TLS"
CORES = (4, 8, 16)
FIGURES = ("per_s", "busy", "relays_ms", "server_ms", "loops_ms")
# LISTEN_PID is the process that the shell becomes.
AS_FROM_SYSTEMD = 'LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=smtp exec "$@"'


def main() -> int:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", required=True, help="folder of the benchmark kit")
    parser.add_argument("--workload", default="small", choices=("small", "fresh", "burst"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of messages")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that all is stopped on the way out
    sys.path.insert(0, given.peers)
    PostgresServer.disk = os.environ["TMPDIR"]
    with ExitStack() as stack:
        server = stack.enter_context(PostgresServer(is_synced=True))
        urls = {ONE: "", **{f"{count} of PostgreSQL": server.create() for count in NODES}}
        options = f"?sslmode=verify-full&sslrootcert={with_tls(server)}"
        for count in NODES:
            name = database_of(server.create())
            urls[f"{count} of PostgreSQL{TLS}"] = f"{server.tcp_url(name, password='')}{options}"
        systems: dict[str, Any] = {}
        for name, url in urls.items():
            count = int(name.split()[0]) if url else 1
            start = f"{sys.executable} -m tests.bench.nodes launch {count} {{listen}} {{sink}} {{dir}} {url}"
            systems[name] = kit("compare").System("nodes", start, None, {})
            stack.callback(systems[name].stop)
            if url:
                ask = partial(server.sql, "SELECT count(*) FROM node", database=database_of(url))
                until("all nodes run", lambda: ask() == str(count))  # noqa: B023
        for delay_us in (0, 500):
            server.configure(commit_delay=str(delay_us), max_wal_size="2GB")
            print(f"\n{given.workload}, commit_delay {delay_us} µs", flush=True)
            print("\n".join(lines(measured(systems, server, given))), flush=True)
    return 0


def launch(count: str, port: str, sink: str, folder: str, url: str = "") -> int:
    """Start relays that share a listening socket, and end them at SIGTERM."""
    os.dup2(socket.create_server(("127.0.0.1", int(port)), backlog=512).detach(), 3)
    command = ["sh", "-c", AS_FROM_SYSTEMD, "sh", Path(sys.executable).parent / "relay", "serve"]
    nodes = []
    for number in range(int(count)):
        home = Path(folder, f"node{number}")
        home.mkdir()
        config = write_template(home)
        text = config.read_text().replace("127.0.0.1:{listen}", "systemd:smtp")
        spool = f'\n[spool]\nurl = "{url}"\nnode = "node{number}"\n' if url else ""
        config.write_text(text.replace("{sink}", sink).replace("{dir}", str(home)) + spool)
        role = ["--role", "transport"] if url else []
        nodes.append(subprocess.Popen([*command, *role, "--config", config], pass_fds=[3]))
    signal.signal(signal.SIGTERM, lambda *_: [node.terminate() for node in nodes])
    return max(node.wait() for node in nodes)


def with_tls(server: PostgresServer) -> Path:
    """Let the server take TLS; return the certificate of the authority."""
    authority = new_authority(server.folder)
    own = authority.issue("IP:127.0.0.1")
    for path, name in ((own.certificate, "server.crt"), (own.key, "server.key")):
        place = Path(shutil.copy(path, server.data / name))
        owner = server.data.stat()
        os.chown(place, owner.st_uid, owner.st_gid)
        place.chmod(0o600)
    access = server.data / "pg_hba.conf"
    access.write_text("hostssl all all 127.0.0.1/32 trust\n" + access.read_text())
    server.configure(ssl="on")
    return authority.certificate


def measured(systems: Mapping[str, Any], server: PostgresServer, given: Any) -> dict[str, Any]:
    """Load the systems in turn; return the median of each figure."""
    compare = kit("compare")
    load = compare.WORKLOADS[given.workload]
    messages = max(load.sessions, int(load.messages * given.scale))
    server_pid = int((server.data / "postmaster.pid").read_text().split()[0])
    rows: dict[str, list[tuple[float, ...]]] = {name: [] for name in systems}
    for number in range(given.rounds + 1):
        for name in list(systems)[:: -1 if number % 2 else 1]:
            server_s, loops_s = compare.cpu_seconds(server_pid), in_loops_s(systems[name])
            row = systems[name].round(load, messages, 300.0)
            server_ms = (compare.cpu_seconds(server_pid) - server_s) * 1000 / messages
            loops_ms = (in_loops_s(systems[name]) - loops_s) * 1000 / messages
            if number:  # the first round warms up
                kept = (row["through_per_s"], row["host_cpus_busy"], row["cpu_ms_per_msg"])
                rows[name].append((*kept, server_ms, loops_ms))
    return {
        name: dict(zip(FIGURES, map(statistics.median, zip(*some, strict=True)), strict=True))
        for name, some in rows.items()
    }


def in_loops_s(system: Any) -> float:
    """Return the processor time of the first thread of each relay, which runs its event loop."""
    tree = kit("compare").tree(system.pid)
    relays = [pid for pid, fields in tree.items() if int(fields[1]) == system.pid]
    texts = (Path(f"/proc/{pid}/task/{pid}/schedstat").read_text() for pid in relays)
    return sum(int(text.split()[0]) / 1e9 for text in texts)


def lines(found: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """The rows of the table, with the computed rates and the relays that they take."""
    names = "".join(f"{name:>11}" for name in FIGURES)
    yield f"{'':<22}{names}  of socket   computed: {''.join(f'{count:>8} cores' for count in CORES)}"
    for name, row in found.items():
        values = "".join(f"{row[figure]:>11.2f}" for figure in FIGURES)
        most_per_s = 1000 / row["loops_ms"] if name == ONE else math.inf
        all_ms = row["relays_ms"] + row["server_ms"]
        of_socket = ""
        if name.endswith(TLS):
            plain = found[name.removesuffix(TLS)]
            of_socket = f"{all_ms / (plain['relays_ms'] + plain['server_ms']):.3f}"
        rates = [min(cores * 1000 / all_ms, most_per_s) for cores in CORES]
        texts = [f"{rate:.0f}/s ({math.ceil(rate * row['loops_ms'] / 1000)})" for rate in rates]
        yield f"{name:<22}{values}{of_socket:>11}             {''.join(f'{text:>14}' for text in texts)}"


if __name__ == "__main__":
    sys.exit(launch(*sys.argv[2:]) if sys.argv[1:2] == ["launch"] else main())
