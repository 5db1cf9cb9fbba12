"""The packages of `make deb` on Debian 12 and 13, which systemd has booted: installed, upgraded, purged.

RELAY_DEBIAN_ROOTS names a directory in which the roots are kept, `bookworm` and `trixie`: debootstrap makes those
that are missing, with the packages of Debian that the tests install. Without it they are made each time. A root is not
changed.
"""

import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from io import BytesIO
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.support.booted_root import BootedRoot
from tests.support.commands import run_command
from tests.support.long_tests import long
from tests.support.own_machine import NoMachineError, checkout
from tests.support.relay_process import ROOT, until

RELEASES = {"12": ("bookworm", "python3.11"), "13": ("trixie", "python3.13")}
NEEDED = "libstdc++6,ca-certificates,systemd-sysv,dbus,debconf,curl,procps,iproute2,openssl"
FROM_DEBIAN = "apt-get install -y --no-install-recommends"
SERVICES = "opendkim opendmarc publicsuffix fail2ban python3-systemd"
OTHERS = "needrestart postgresql"
COMMIT = "git init -q && git add . && git -c user.name=a -c user.email=a@a.test commit -qm x"
OLDER = ("0.3.0", "0.4.0", "0.5.0", "0.6.0")
ENGINES = ("sqlite", "postgresql")
FILE = re.compile(r"\[([^]]+)\]\(((?!\w+:)[^)#]+(?<!\.md))\)")  # a link to no page
BLOCKS = re.compile(r"^```(?:toml)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EDIT = """sed -i 's/relay.example.org/mail.example.org/; s/^.mailboxes]$/&\\ndomains = ["example.org"]/' /etc/relay/relay.toml"""
EDIT_SHORT = "sed -i 's/relay.example/mail.example/; s/#domains/domains/' /etc/relay/relay.toml"
INBOX = "/var/lib/relay/mail/example.org/ann/new"
BACK = "apt-get install -y --allow-downgrades -o Dpkg::Options::=--force-confold ./0.3.0/*.deb"
TO_SINK = '\n[[route]]\ndomain = "*"\nnext_hop = "smtp://127.0.0.1:2526"\n'
DATABASE = "su postgres -c 'createuser relay && createdb --owner relay relay'"
SPOOL = '\n[spool]\nurl = "postgresql:///relay"\n'
SCHEDULE = """curl -sSf http://127.0.0.1:8025/v1.0/me/sendMail -H 'Authorization: Bearer secret' -H 'Content-Type: application/json' \
-d '{"message": {"subject": "scheduled", "toRecipients": [{"emailAddress": {"address": "ann@example.org"}}],
"singleValueExtendedProperties": [{"id": "SystemTime 0x3FEF", "value": "2099-01-01T00:00:00Z"}]}}'"""
CHANGE_CONFFILES = (
    """dpkg-query -Wf '${Conffiles}' graph-relay | awk '{print $1}' | xargs -r sed -i '$a # mine'"""
)
# What 0.6.0 has, and 0.7.0 has not: applications with keys, automatic replies. The key is of RFC 7517, A.1.
APPLICATIONS = """
[[account]]
address = "certified@example.org"
client_id = "certified"
client_certificate = "app.pem"

[[account]]
address = "keyed@example.org"
client_id = "keyed"
client_keys = '''{"keys": [{"kty": "EC", "crv": "P-256", "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
"y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}'''
"""
CERTIFICATE = "openssl req -x509 -newkey rsa:2048 -nodes -days 365 -subj /CN=app -keyout app.key -out /etc/relay/app.pem"
REPLY = """curl -sSf -X PATCH http://127.0.0.1:8025/v1.0/me/mailboxSettings -H 'Authorization: Bearer secret' -H 'Content-Type: application/json' \
-d '{"automaticRepliesSetting": {"status": "alwaysEnabled", "externalAudience": "all", "externalReplyMessage": "away"}}'"""
REMOVED = ("client_certificate: found a", "client_keys: found a", "automatic replies are set in")
TO_DEAD = "! curl -v --crlf smtp://127.0.0.1 --mail-from a@b.test --mail-rcpt dead@b.test -T load"
IN_BACKGROUND = "systemd-run --same-dir -p StandardError=journal -p StandardOutput=file"
SINK = f"{IN_BACKGROUND}:/dev/null /opt/relay/bin/python -m aiosmtpd -n -l 127.0.0.1:2526 -c aiosmtpd.handlers.Mailbox sink"
LOAD = r"""send() { until [ -e enough ]; do sleep 0.05; number=$((number + 1)) subject="$1 $number"
    ! printf 'To: ann@example.org\nSubject: %s\n\n' "$subject" | "${@:2}" >&2 || echo "$subject"
done; }
send program relay sendmail ann@example.org &
send smtp curl -sS smtp://127.0.0.1 --mail-from x@y.test --mail-rcpt ann@example.org --crlf -T - &
wait"""
RULES = "relay policy check | sed '$d'"
# The postrm of the old version runs when all files are replaced, and before dpkg is done.
WHILE_REPLACED = """[ "$1" != upgrade ] || (
    cd /opt/relay/lib/python3*/site-packages/relay; mv base x
    (sendmail root </dev/null; echo $?) >"$HOME/meanwhile" 2>&1 &
    until [ -s "$HOME/meanwhile" ]; do sleep 0.1; done; mv x base
)
"""


def build(folder: Path, day: int) -> Path:
    """Build the commit of a checkout, as a user without rights; return where the packages are."""
    subprocess.run(["chown", "-R", "nobody:", folder], check=True)
    own = dict.fromkeys(("HOME", "TMPDIR"), str(folder))
    when = f"2026-11-0{day}T10:00:00Z"  # two checkouts have the same commit
    own |= dict.fromkeys(("GIT_AUTHOR_DATE", "GIT_COMMITTER_DATE"), when)
    command = f"{COMMIT} && make deb PYTHON=/usr/bin/python3"
    done = run_command(
        ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "bash", "-ec", command],
        cwd=folder,
        env=os.environ | own,
        timeout_s=900,
    )
    if done.returncode and "(from versions: none)" in done.stderr:
        pytest.skip("no package index answers")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "dist"


@pytest.fixture(scope="module")
def packages() -> Iterator[Path]:
    """A directory with those of this version, `dist`, and of each older one."""
    needed = "dpkg-deb --version && /usr/bin/python3 -c 'import ensurepip' && unshare --mount true"
    if subprocess.run(needed, shell=True, capture_output=True, check=False).returncode:
        pytest.skip("only root of a Debian with python3-venv can do this")
    find = ["git", "log", "-1", "--format=%H", "--fixed-strings"]
    commits = {
        version: subprocess.check_output([*find, f"--grep=release: {version}"], cwd=ROOT, text=True)
        for version in OLDER
    }
    if not all(commits.values()):
        pytest.skip("the history of Git has not all releases")
    with TemporaryDirectory(dir="/tmp") as folder:
        top = Path(folder)
        top.chmod(0o755)
        new, again = top / "one", top / "another/folder"
        checkout(new)
        checkout(again)
        shutil.copytree(build(new, day=2), top / "dist")
        for version, commit in commits.items():
            older = top / f"source-{version}"
            older.mkdir()
            archive = f"git archive {commit.strip()} | tar -x -C {older}"
            subprocess.run(archive, shell=True, cwd=ROOT, check=True)
            shutil.copytree(build(older, day=1), top / version)
        for package in build(again, day=2).iterdir():
            assert package.read_bytes() == (top / "dist" / package.name).read_bytes()
        yield top


def root_of(release: str, folder: Path) -> Path:
    """Return a root of this release; make it if it is missing."""
    name, python = RELEASES[release]
    place = Path(os.environ.get("RELAY_DEBIAN_ROOTS", folder), name)
    if not place.exists():
        command = (
            f"debootstrap --variant=minbase --include={python},{NEEDED} {name} {place} &&"
            # they stay in the cache of apt, as the machine has no network
            f" chroot {place} sh -c 'apt-get update && {FROM_DEBIAN} -d postfix &&"
            f" {FROM_DEBIAN} -d bsd-mailx && {FROM_DEBIAN} -d {SERVICES} &&"
            f" {FROM_DEBIAN} -d {OTHERS}'"
        )
        done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
        if done.returncode:
            shutil.rmtree(place, ignore_errors=True)
            pytest.skip(f"no root of Debian {release}: {(done.stdout + done.stderr)[-200:]}")
    return place


@pytest.fixture(params=RELEASES)
def machine(request, packages: Path, tmp_path: Path) -> Iterator[BootedRoot]:
    """A machine of each release, with the packages where the administrator is: in `dist`, `0.3.0` ..."""
    release = request.param
    try:
        booted = BootedRoot(root_of(release, tmp_path), tmp_path / "machine")
    except NoMachineError as error:
        pytest.skip(str(error))
    with booted as machine:
        for name in (*OLDER, "dist"):
            (machine.files / "root" / name).mkdir()
            for package in (packages / name).glob(f"*+deb{release}_*.deb"):
                shutil.copy(package, machine.files / "root" / name)
        yield machine


def blocks(heading: str, page: str = "operation-install") -> list[str]:
    """Return the blocks of a section of a page."""
    text = (ROOT / f"docs/{page}.md").read_text()
    section = re.split(rf"^## {re.escape(heading)}\n", text, flags=re.MULTILINE)[1]
    return BLOCKS.findall(re.split(r"^## ", section, maxsplit=1, flags=re.MULTILINE)[0])


PRINTED, ACCOUNTS, START = blocks("Debian package")
INSTALL = PRINTED.replace("deb12", "deb1?").strip()
[TO_0_5_0, *_] = blocks("Upgrade", "operation-backup")
GO_BACK = TO_0_5_0.replace("deb12", "deb1?")
WITHOUT_ROLE = INSTALL.replace("relay*", "relay_*")


def use_accounts(machine: BootedRoot, text: str = ACCOUNTS) -> None:
    (machine.files / "etc/relay/accounts.toml").write_text(text)


def install(machine: BootedRoot) -> None:
    """Install both packages where there are none, as the page says."""
    machine.run(f"{INSTALL} && ! systemctl --quiet is-active relay && {EDIT_SHORT}")
    use_accounts(machine)


def under_load(machine: BootedRoot) -> None:
    """Return when the client of the load has sent more."""
    sent = "cat sent || true"
    before = len(machine.run(sent))
    until("more is sent", lambda: len(machine.run(sent)) > before + 100)


def mail_arrives(machine: BootedRoot) -> None:
    machine.run(f"rm -f {INBOX}/*; echo 'Subject: x' | sendmail root")
    until("cron's mail is in the mailbox", lambda: machine.run(f"ls {INBOX}"))


@long
def test_files_that_pages_of_operators_name_are_in_the_package(packages):
    [package] = (packages / "dist").glob("graph-relay_*+deb12_*.deb")
    octets = subprocess.check_output(["dpkg-deb", "--fsys-tarfile", package])
    with tarfile.open(fileobj=BytesIO(octets)) as tar:
        held = {one.name[1:]: tar.extractfile(one).read() for one in tar if one.isfile()}
    for page in (ROOT / "docs").glob("operation-*.md"):
        text = page.read_text()
        links = {name: (ROOT / "docs" / target).read_bytes() for name, target in FILE.findall(text)}
        assert links == {name: held.get(name) for name in links}, page
        assert {*re.findall(r"/usr/share/doc/[\w/.-]+\w", text)} <= held.keys(), page


@long
def test_beside_postfix_an_older_package_is_upgraded_and_takes_the_role(machine):
    machine.run(
        "echo postfix postfix/main_mailer_type select 'Internet Site' | debconf-set-selections"
    )
    machine.run(f"{FROM_DEBIAN} postfix")
    machine.run("postconf -e defer_transports=smtp && systemctl reload postfix")
    machine.run("echo 'Subject: x' | sendmail bob@elsewhere.test")
    until("it is deferred", lambda: "elsewhere" in machine.run("mailq"))
    machine.run("apt-get install -y ./0.3.0/*.deb")
    machine.run(f"{EDIT}; sed -i 's/0.1:25/0.1:2525/' /etc/relay/relay.toml")
    machine.run("cd /etc/relay/policies; echo '# mine' >>70-staging.toml; rm 40-*")
    use_accounts(machine)
    machine.run("systemctl enable --now relay")
    machine.run("find /etc/relay -type f -exec sha256sum {} + >before")
    rules = machine.run(RULES)
    assert "active: listening" in machine.run(WITHOUT_ROLE)
    assert 'version="0.3.0"' not in machine.run("curl -s http://127.0.0.1:8025/metrics")
    machine.run("sha256sum --check before")
    assert machine.run(RULES) == rules
    assert "elsewhere.test" in machine.run("mailq")
    # another program has the port when the service is restarted
    machine.run("sed -i 's/0.1:2525/0.1:25/' /etc/relay/relay.toml")
    waits = "activating: waiting: 127.0.0.1:25 is in use by"
    assert waits in machine.run(WITHOUT_ROLE.replace("-y", "-y --reinstall"))
    assert "a free address: master (pid" in machine.run("relay check", code=78)
    assert "1 messages of Postfix wait" in machine.run(f"{INSTALL} bsd-mailx")
    machine.run("find /var/spool/postfix/deferred -type f | grep .")
    until("it is up", lambda: machine.run("systemctl is-active relay || true") == "active\n")
    machine.reboot()
    mail_arrives(machine)
    assert '"relay"' in machine.run("ss -Hltnp 'sport = 25'")
    machine.run("sed -i 's/0.1:25/0.1:2525/' /etc/relay/relay.toml")
    machine.run(BACK)
    # the newer process runs on, since 0.3.0 refuses its spool; operation-backup.md has the way back
    machine.run("systemctl is-active relay && relay --version | grep 0.3.0")
    machine.run("sha256sum --check before")
    assert machine.run(RULES) == rules


@long
@pytest.mark.parametrize(("first", "edited"), [("0.3.0", False), ("0.4.0", True)])
def test_the_file_of_an_older_package_starts_after_two_upgrades_and_a_boot(machine, first, edited):
    machine.run(f"{FROM_DEBIAN} needrestart && apt-get install -y ./{first}/graph-relay_*.deb")
    if edited:
        machine.run(EDIT_SHORT)
        use_accounts(machine)
    machine.run("systemctl enable --now relay")
    machine.run("find /etc/relay -type f -exec sha256sum {} + >before")
    for packages in ("0.5.0/*", "dist/*", "dist/*"):
        assert "active: " in machine.run(f"apt-get install -y --reinstall ./{packages}.deb")
        machine.run("NEEDRESTART_UI=NeedRestart::UI::stdio needrestart -r a")
    machine.run("sha256sum --check before")
    machine.reboot()
    machine.run(
        "systemctl is-active relay && ! relay check --json | grep '\"refuses_start\": *true'"
    )
    machine.run("echo 'Subject: x' | sendmail bob@elsewhere.test")
    until("it is in the queue", lambda: "bob@elsewhere.test" in machine.run("relay queue list"))
    machine.run(
        "install -d /etc/systemd/system/relay.service.d; printf '[Service]\nEnvironment=MYHOST=mail.example.org\n' "
        ">/etc/systemd/system/relay.service.d/x.conf; systemctl daemon-reload; sed -i "
        "'s/^hostname = .*/hostname = \"${env:MYHOST}\"/' /etc/relay/relay.toml; systemctl restart relay"
    )
    assert "active: " in machine.run("apt-get install -y --reinstall ./dist/*.deb")
    # what a start would refuse is the status of the process that runs on
    machine.run("echo '[nonsense]' >>/etc/relay/relay.toml; sha256sum /etc/relay/* >before || true")
    assert "relay.toml:" in machine.run("apt-get install -y --reinstall ./dist/*.deb")
    status = "systemctl show -p StatusText relay"
    assert "=the new version does not start: /etc/relay/relay.toml:" in machine.run(status)
    machine.run("NEEDRESTART_UI=NeedRestart::UI::stdio needrestart -r a; systemctl is-active relay")
    machine.run("sha256sum --check before && mailq && relay resume")
    dying = "printf '#!/bin/sh\nexit 70\n' >/usr/local/bin/relay; chmod +x /usr/local/bin/relay"
    again = 'apt-get install -y --reinstall -o DPkg::Path="$PATH" ./dist/*.deb'
    assert "without a result" in machine.run(f"{dying}; {again}; rm /usr/local/bin/relay")
    machine.run("systemctl is-active relay")
    # the commands that follow do not have the variable of the unit
    corrected = "sed -i '/nonsense/d; s/${env:MYHOST}/mail.example.org/' /etc/relay/relay.toml"
    machine.run(f"{corrected} && systemctl reload relay")
    assert "=reloaded" in machine.run(status)
    if edited:
        mail_arrives(machine)
        back_up, restore, *_ = blocks("Back up", "operation-backup")
        machine.run(f"{back_up}apt-get -y purge 'graph-relay*'; rm -rf /etc/relay /var/lib/relay")
        machine.run(f"{INSTALL}\n{restore.replace('2026-11-22', '$(date +%F)')}")
        assert "bob@elsewhere.test" in machine.run("relay queue list")
        mail_arrives(machine)


@long
@pytest.mark.parametrize(
    ("first", "engine"),
    [("0.3.0", "sqlite"), ("0.4.0", "postgresql"), *product(("0.5.0", "0.6.0"), ENGINES)],
)
def test_no_mail_is_lost_or_sent_twice_by_an_upgrade_under_load_and_the_way_back(
    machine, first, engine
):
    edit = EDIT if first == "0.3.0" else EDIT_SHORT
    back, is_0_6_0 = max(first, "0.5.0"), first == "0.6.0"
    machine.run(f"apt-get install -y ./{first}/*.deb; {edit}; {CHANGE_CONFFILES}")
    if engine == "postgresql":
        machine.run(f"{FROM_DEBIAN} postgresql && {DATABASE}")
    added = TO_SINK + SPOOL * (engine == "postgresql") + "\n[suppression]\n" * is_0_6_0
    machine.run(f"cat >>/etc/relay/relay.toml <<'END'{added}END\n{CERTIFICATE}")
    accounts = ACCOUNTS.replace("\n\n", '\ntoken = "plain:secret"\n\n', 1)
    use_accounts(machine, accounts + APPLICATIONS * is_0_6_0)
    machine.run("systemctl enable --now relay")
    machine.run("find /etc -path '*relay*' -type f -exec sha256sum {} + >before")
    for domain in ("deferred.test", "held.test"):
        machine.run(f"printf 'Subject: {domain}\n\n' | relay sendmail bob@{domain}")
    until("they wait", lambda: machine.run("relay queue list --state deferred").count("bob@") == 2)
    machine.run(f"relay queue hold --domain held.test; {SCHEDULE}")
    (machine.files / "root/load").write_text(LOAD)
    if is_0_6_0:
        machine.run(f"{REPLY} && relay suppressed add dead@b.test --reason x")
    machine.run(f"{IN_BACKGROUND}:$HOME/sent --unit=load bash load")
    under_load(machine)
    assert "active: listening" in machine.run(INSTALL)
    under_load(machine)
    held, others = (machine.run(f"relay queue list {one}") for one in ("--state held", ""))
    assert ("bob@held.test" in held, "bob@deferred.test" in others) == (True, True)
    assert "ann@example.org" in machine.run("relay queue list --state scheduled")
    if is_0_6_0:
        assert "suppressed since" in machine.run(TO_DEAD)
        assert [one for one in REMOVED if one not in machine.run("relay check || true")] == []
    go_back = GO_BACK.replace("dist", back).replace("0.5.0", back)
    assert "active: listening" in machine.run(go_back)
    assert back in machine.run("relay --version && sha256sum --check before")
    under_load(machine)
    if is_0_6_0:
        assert "suppressed since" in machine.run(TO_DEAD)
    machine.run(f"touch enough; {SINK}")
    machine.run("relay queue release --state held --all && relay queue retry --all")
    until("the load ends", lambda: "inactive" in machine.run("systemctl is-active load || true"))
    until("nothing waits", lambda: "queue is empty" in machine.run("relay mailq"))
    sent = {*machine.run("cat sent").splitlines(), "deferred.test", "held.test"}
    sent |= {"Automatic reply: smtp 1"} if is_0_6_0 else set()
    subjects = f"grep -rhoP '^Subject: \\K.*' {INBOX} sink/new"
    until("all is there", lambda: sent <= {*machine.run(subjects).splitlines()})
    arrived = machine.run(subjects).splitlines()
    assert len(arrived) == len({*arrived})
    machine.run("ls /var/lib/relay/mail/.submissions/deferred | grep .")


@long
def test_on_a_machine_without_mail_the_page_leads_to_the_first_one(machine):
    machine.run("ln -s /opt/relay/bin/relay /usr/sbin/sendmail")  # as before there was a package
    install(machine)
    checked = f"({START.splitlines()[0]}) 2>&1 || true"
    machine.run(f"{checked}\n{START.partition(chr(10))[2]}")
    until("it is in the mailbox", lambda: machine.run(f"ls {INBOX}"))
    state = machine.run(checked)
    machine.run("mailq && newaliases && /usr/lib/sendmail root </dev/null")
    upgrading = "cd /opt/relay/lib/python3*/site-packages/relay; mv base x; code=0; mailq || code=$?; mv x base; exit $code"
    assert "or being upgraded: No module" in machine.run(upgrading, code=75)
    postrm = machine.files / "var/lib/dpkg/info/graph-relay.postrm"
    postrm.write_text(postrm.read_text().replace("set -e\n", WHILE_REPLACED, 1))
    # a folder that cannot be removed, as where root's mail makes byte code again
    machine.run("mount --bind /mnt /opt/relay/lib/python3*/site-packages/idna/__pycache__")
    machine.run("apt-get install -y --reinstall ./dist/graph-relay_*.deb")
    until("sendmail has waited, and sent", lambda: "\n0\n" in machine.run("cat meanwhile"))
    pages = machine.run("cd /usr/share/man && gzip -dc man5/relay.toml.5.gz man1/sendmail.1.gz")
    assert all(name in pages for name in (r"relay\-check", r"relay\-sendmail"))
    completed = "COMP_WORDS='relay que' COMP_CWORD=1 _RELAY_COMPLETE=bash_complete relay"
    assert machine.run(completed) == "plain,queue\n"
    machine.run("ls /usr/share/bash-completion/completions/relay")
    machine.run("systemctl stop relay")
    assert machine.run(checked) == state
    failing = "/run/systemd/system/relay.service.d"
    machine.run(f"mkdir {failing} && printf '[Service]\nExecStartPre=false\n' >{failing}/x.conf")
    machine.run("systemctl daemon-reload; systemctl start relay", code=1)
    assert machine.run(checked) == state
    machine.run("echo 'Subject: x' | sendmail bob@elsewhere.test")  # waits in the drop directory
    machine.reboot()
    assert machine.run(checked) == state
    until("it waits", lambda: "bob@elsewhere.test" in machine.run("relay queue list"))
    mail_arrives(machine)
    rules = machine.run(RULES)
    machine.run("echo '# mine' >/etc/relay/policies/99-mine.toml")
    machine.run("dpkg --purge graph-relay-mta graph-relay && ! ls /etc/relay/relay.toml")
    machine.run(
        f"ls -d {INBOX} /etc/relay/accounts.toml /etc/relay/policies/99-mine.toml && id relay"
    )
    machine.run(f"{INSTALL}; {EDIT_SHORT}; systemctl enable --now relay")
    assert machine.run(RULES) == rules
    machine.run(
        f"sed -i -E '/^(shipped|sender_checks|reject_unknown)/d' /etc/relay/relay.toml && {BACK}"
    )
    assert machine.run(f"systemctl is-active relay && {RULES}") == f"active\n{rules}"
    machine.run("echo graph-relay graph-relay/delete-mail boolean true | debconf-set-selections")
    machine.run(
        "dpkg -P graph-relay && ! ls -d /etc/relay /var/lib/relay /var/spool/relay | grep ."
    )


@long
def test_pages_of_other_services_lead_to_services_that_run_after_a_boot(machine):
    install(machine)
    machine.run(f"{FROM_DEBIAN} {SERVICES} || true")  # fail2ban of Debian 12 does not start
    for block in blocks("OpenDMARC, with OpenDKIM: SPF, DKIM and DMARC without rspamd", "filters"):
        name, _, text = block.removeprefix("# ").partition("\n")
        place = machine.files / name.replace("relay.toml", "/etc/relay/relay.toml").lstrip("/")
        with place.open("a" if place.name == "relay.toml" else "w") as file:
            file.write(f"\n{text}")
    _, key_and_test, *_ = blocks("Webhooks", "webhooks")
    machine.run(
        f"umask 077; {key_and_test.splitlines()[0]}; setpriv --reuid=relay --regid=relay "
        "--clear-groups cat /etc/relay/webhook.key"
    )
    machine.run("systemctl restart opendkim opendmarc; systemctl enable --now relay")
    machine.run(blocks("Ban addresses that guess passwords", "operation-run")[0])
    machine.reboot()
    machine.run("systemctl is-active relay opendkim opendmarc fail2ban")
    jail = "fail2ban-client status relay || true"
    until("it has the jail", lambda: "Journal matches" in machine.run(jail))
    assert machine.run("relay check || true").count("at 127.0.0.1:889") == 2


@long
def test_the_package_keeps_what_was_installed_by_hand(machine):
    checkout(machine.files / "root/checkout")
    by_hand, *_ = blocks("Install on Debian")
    lines = (
        line
        for line in by_hand.splitlines()
        if not re.match("apt-get|python3|/opt/relay/bin/pip", line)
    )
    machine.run("cd checkout; mkdir -p /opt/relay\n" + "\n".join(lines))
    machine.run(
        f"{EDIT}; rm /etc/relay/policies/40-*; find /etc/relay -type f -exec sha256sum {{}} + >before"
    )
    machine.run(blocks("Uninstall")[0])
    machine.run(INSTALL)
    machine.run("sha256sum --check before && systemctl enable --now relay && ls /usr/bin/relay")
    machine.run("dpkg --purge graph-relay-mta graph-relay && sha256sum --check before")
