"""relay.toml as each release's page or package wrote it: it starts, and warns of what is no key any
more; and what an operator of a running relay asks while the file has a fault.

tests/configurations has the files as they were shipped; they never change.
"""

import re
from pathlib import Path

import pytest

from relay.base.settings.removed_keys import REMOVED_KEYS
from tests.support.relay_process import ROOT

SHIPPED = sorted((ROOT / "tests/configurations").glob("*.toml"))
REMOVED = {key for keys in REMOVED_KEYS.values() for key in keys}
OF_TABLE = r"\[delivery\.retry_by_class\]|(?:dns|connect|tls|auth|site|recipient|mailbox|protocol|content|internal) = \[\]|give_up_after|max_concurrent"
UNCOMMENTED = re.compile(rf"^#(?={OF_TABLE}|{'|'.join(REMOVED)})", re.MULTILINE)
OWN = 'domains = ["example.test"]'
PLACES = {
    '"/var/lib/relay"': '"state"',
    '"/var/lib/relay/mail"': '"mail"',
    '"127.0.0.1:8025"': '"127.0.0.1:0"',
    '"127.0.0.1:25"': '"127.0.0.1:0"',
    "/usr/share/graph-relay": str(ROOT),
    "\n[sendmail]\n": '\n[sendmail]\nsocket = "submit.sock"\ndrop = ""\n',
}
CONFIGURATION = 78
# verbs that ask the running relay, or else read its files, or do not
BOTH = ("queue list", "queue stats", "pause delivery", "resume", "list", "log", "mailq")
ASKING = (
    "queue release --all",
    "search from:x",
    "stats",
    "trace last",
    "show last",
    "wait x --timeout 0",
)
CODES = {"trace last": 65, "show last": 65, "wait x --timeout 0": 75}


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
@pytest.mark.parametrize("edited", [False, True], ids=["as it was", "with values"])
def test_the_file_of_each_release_starts_and_is_warned_about(serve, file: Path, edited: bool):
    text = file.read_text()
    for old, new in PLACES.items():
        text = text.replace(old, new)
    if edited:
        text = UNCOMMENTED.sub("", text).replace("[mailboxes]", f"[mailboxes]\n{OWN}", 1)
    expected = {key for key in REMOVED if re.search(rf"^(\[.*)?{key}\b", text, re.MULTILINE)}
    assert not edited or "0.4.0" in file.stem or len(expected) > 1
    relay = serve(start=False)
    relay.config_file.write_text(text)
    if not edited:
        (relay.folder / "accounts.toml").write_text("")
    relay.start()
    assert relay.cli("reload").returncode == 0
    if edited:
        assert relay.until_final(relay.send_mail(to=["bob@example.test"]))["state"] == "delivered"
    for key in expected:
        assert len(re.findall(rf"no use.*{key}: found a key that 0\.", relay.log)) == 2
    warned = re.findall(
        r"^warning: .*: (\S+): found a key that 0", relay.cli("check").stderr, re.MULTILINE
    )
    assert {key.rpartition(".")[2] for key in warned} == expected


@pytest.mark.parametrize("fault", ["[nonsense]\n", '[delivery]\nport = "x"\n'])
def test_a_fault_elsewhere_is_a_line_for_verbs_that_ask_the_running_relay(serve, fault):
    relay = serve()
    good = relay.config_file.read_text()
    relay.config_file.write_text(good.replace("[delivery]\n", "") + fault)
    for verb in BOTH + ASKING:
        done = relay.cli(*verb.split())
        lines = [line for line in done.stderr.splitlines() if f"{relay.config_file}:" in line]
        assert (done.returncode, len(lines)) == (CODES.get(verb, 0), 1), (verb, done)
    for verb in ("check", "reload", "config diff"):
        assert relay.cli(*verb.split()).returncode == CONFIGURATION
    nowhere = re.sub("^state_dir .*", "state_dir = [", good, flags=re.MULTILINE)
    relay.config_file.write_text(nowhere)  # nobody knows where the relay is
    assert {relay.cli(*verb.split()).returncode for verb in BOTH + ASKING} == {CONFIGURATION}


def test_without_a_running_relay_a_fault_of_the_spool_is_78_and_opens_no_other(serve):
    relay = serve()
    relay.stop()
    good = relay.config_file.read_text()
    other = 'url = "sqlite:x"\n'
    for fault, code in (
        ("[nonsense]\n", 0),
        ('[spool]\nurl = "x"\n', CONFIGURATION),
        (f"[spoool]\n{other}", CONFIGURATION),
    ):
        relay.config_file.write_text(good.replace("[spool]\n", "") + fault)
        for verb in BOTH:
            done = relay.cli(*verb.split())
            assert done.returncode == code, (verb, fault, done)
    relay.config_file.write_text(f"{good}[sendmail]\nsocket = 1\n")
    assert [relay.cli(one).returncode for one in ("mailq", "log")] == [CONFIGURATION, 0]
