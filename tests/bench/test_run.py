"""make bench says what is missing, and ends with the exit code for it."""

import os
import subprocess
from pathlib import Path

RUN = Path(__file__).with_name("run.sh")


def test_without_the_kit_it_says_so(tmp_path):
    environment = {"PATH": os.environ["PATH"], "PEERS": str(tmp_path / "none")}
    done = subprocess.run(
        ["sh", str(RUN)], env=environment, capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 69
    assert done.stderr == f"bench: no benchmark kit in {tmp_path}/none; set PEERS to its folder\n"
