"""Say whether a sync stands before each 250 of a relay that runs as the benchmark runs it.

Usage: sync_check.py RELAY TEMPLATE. Exits 0 if it does, 1 if not, 69 where strace cannot be used.
"""

import shutil
import smtplib
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.support.ports import free_port
from tests.support.sync_trace import CannotTraceError, SyncTrace

MESSAGES = 20
START_S = 20.0
CONTENT = b"Subject: is it durable?\r\n\r\n" + b"x" * 70 + b"\r\n"


def connect(port: int) -> smtplib.SMTP:
    """Greet as soon as the relay does."""
    deadline = time.monotonic() + START_S
    while True:
        try:
            return smtplib.SMTP("127.0.0.1", port, timeout=START_S)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def main(relay: str, template: str) -> int:
    folder = Path(tempfile.mkdtemp())
    names = {"listen": str(free_port()), "sink": str(free_port()), "dir": str(folder)}
    text = Path(template).read_text()
    for name, value in names.items():
        text = text.replace("{" + name + "}", value)
    config = folder / "relay.toml"
    config.write_text(text)
    command = [relay, "serve", "--config", str(config)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        with connect(int(names["listen"])) as session, SyncTrace(process.pid) as trace:
            for _ in range(MESSAGES):
                session.sendmail("a@example.org", ["b@example.com"], CONTENT)
    except CannotTraceError as error:
        print(f"sync before 250: not looked at, {error}", file=sys.stderr)
        return 69
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(folder)
    print(f"sync before 250: {trace.synced} of {MESSAGES} messages, {trace.missing} without")
    return 0 if (trace.synced, trace.missing) == (MESSAGES, 0) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
