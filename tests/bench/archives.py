"""What a hostile archive a second costs the relay and its other clients.

    tests/bench/archives.py                     50 messages without and with the archives
    tests/bench/archives.py --messages 200 --relay .venv/bin/relay

One client sends an archive a second: a bomb, a thousand entries with the same octets, ten thousand
entries, ZIP files inside each other, a truncated file, ZIP files with long damaged directories.
Another one sends small messages with an archive of its own, and measures the time from the final dot
to the reply. The rules are the shipped ones. Bounds: the relay's peak memory grows by 20 MB at most,
the median of the other client's reply by 100 ms.
"""

import argparse
import io
import itertools
import re
import smtplib
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from email.message import EmailMessage
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
CONFIGURATION = """\
hostname = "relay.example.test"
state_dir = "state"
[http]
listen = ["unix:http.sock"]
[[smtp]]
listen = "127.0.0.1:{port}"
trusted_networks = ["127.0.0.0/8"]
[mailboxes]
domains = ["example.test"]
root = "mail"
[[route]]
domain = "*"
next_hop = "capture"
[policy]
directory = "{policies}"
"""
START_S = 30
WAIT_S = 0.1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--messages", type=int, default=50)
    parser.add_argument("--relay", type=Path, default=Path(sys.executable).parent / "relay")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="archives-") as name:
        folder = Path(name)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        text = CONFIGURATION.format(port=port, policies=TOP / "policies")
        (folder / "relay.toml").write_text(text)
        (folder / "accounts.toml").touch(0o600)
        ready = folder / "ready"
        command = [given.relay, "serve", "--config", folder / "relay.toml", "--ready-file", ready]
        with (folder / "log").open("wb") as log:
            relay = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            until = time.monotonic() + START_S
            while not ready.exists():
                if relay.poll() is not None or time.monotonic() > until:
                    sys.exit((folder / "log").read_text()[-2000:])
                time.sleep(WAIT_S)  # real time: the relay starts
            return measured(relay, port, given.messages)
        finally:
            relay.terminate()
            relay.wait()


def measured(relay: subprocess.Popen[bytes], port: int, messages: int) -> int:
    usual = zipped([("report.txt", b"figures\n" * 5000)])
    replies(port, usual, count=5)  # the process that looks into archives is there
    without, memory = replies(port, usual, count=messages), peak_bytes(relay.pid)
    stop = threading.Event()
    codes: list[int] = []
    hostile = threading.Thread(target=send_hostile, args=(port, stop, codes))
    hostile.start()
    beside = replies(port, usual, count=messages)
    stop.set()
    hostile.join()
    later_ms = 1000 * (statistics.median(beside) - statistics.median(without))
    grown = (peak_bytes(relay.pid) - memory) / 1e6
    print(f"median of {messages} replies, ms: {1000 * statistics.median(without):.1f} without,"
          f" {1000 * statistics.median(beside):.1f} with; highest"
          f" {1000 * max(without):.0f}, {1000 * max(beside):.0f}")  # fmt: skip
    print(f"peak memory, MB: {memory / 1e6:.1f}; grown by {grown:.1f}")
    print(f"{len(codes)} hostile archives, replies {sorted(set(codes))}")
    return int(later_ms > 100 or grown > 20)


def replies(port: int, archive: bytes, *, count: int) -> list[float]:
    """Send messages, one every half second, and return how long the reply to each took."""
    taken = []
    with smtplib.SMTP("127.0.0.1", port, source_address=("127.0.0.3", 0)) as client:
        for _ in range(count):
            time.sleep(5 * WAIT_S)  # real time: the pace of the bench
            client.ehlo_or_helo_if_needed()
            taken.append(sent(client, archive)[1])
    return taken


def send_hostile(port: int, stop: threading.Event, codes: list[int]) -> None:
    for archive in itertools.cycle(hostile_archives()):
        with smtplib.SMTP("127.0.0.1", port, source_address=("127.0.0.2", 0)) as client:
            client.ehlo()
            codes.append(sent(client, archive)[0])
        if stop.wait(1):
            return


def sent(client: smtplib.SMTP, archive: bytes) -> tuple[int, float]:
    """Send a message, and return the reply and how long it took."""
    message = EmailMessage()
    message["From"], message["To"] = "ann@example.test", "bob@elsewhere.test"
    message["Subject"] = "figures"
    message.set_content("see the attachment")
    message.add_attachment(archive, maintype="application", subtype="zip", filename="figures.zip")
    octets = re.sub(rb"\r?\n", b"\r\n", message.as_bytes())
    client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.mail("ann@example.test")
    client.rcpt("bob@elsewhere.test")
    client.docmd("DATA")
    client.send(octets)
    begun = time.monotonic()
    client.send(b"\r\n.\r\n")
    code, _ = client.getreply()
    return code, time.monotonic() - begun


def zipped(entries: list[tuple[str, bytes]]) -> bytes:
    octets = io.BytesIO()
    with zipfile.ZipFile(octets, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return octets.getvalue()


def hostile_archives() -> list[bytes]:
    large = bytes(45 << 20)
    one = zipped([("1.txt", large)])
    at, end = one.rindex(b"PK\1\2"), one.rindex(b"PK\5\6")
    nested = zipped([("a.txt", large)])
    for number in range(4):
        nested = zipped([(f"{number}.zip", nested)])
    # A directory that names the same octets a thousand times.
    count = (1000).to_bytes(2, "little")
    size = ((end - at) * 1000).to_bytes(4, "little")
    same = one[:at] + one[at:end] * 1000 + b"PK\5\6\0\0\0\0" + count + count + size
    # 4 MB of a directory, of which the last record is none.
    count = (65535).to_bytes(2, "little")
    size = ((end - at) * 80_000 + 46).to_bytes(4, "little")
    damaged = one[:at] + one[at:end] * 80_000 + bytes(46) + b"PK\5\6\0\0\0\0" + count + count + size
    damaged += at.to_bytes(4, "little") + b"\0\0"
    return [
        zipped([(f"{number}.txt", large) for number in range(20)]),
        same + at.to_bytes(4, "little") + b"\0\0",
        zipped([(f"{number}.txt", b"") for number in range(10_000)]),
        nested,
        one[: len(one) // 2],
        zipped([(f"{number}.zip", damaged) for number in range(23)]),
    ]


def peak_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024  # type: ignore[index]


if __name__ == "__main__":
    sys.exit(main())
