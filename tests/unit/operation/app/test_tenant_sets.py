"""Which rules of tenants are in force: one tenant's fault is nobody else's."""

import os
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.base.clock import SystemClock
from relay.base.message.envelope import Source
from relay.base.settings.document import SettingsError
from relay.base.settings.reader import load
from relay.operation.app.configuration import ActiveConfiguration
from relay.operation.app.tenant_sets import book_of, load_strictly
from relay.transport.policy.rule_files import read_rules
from relay.transport.policy.rule_tests import examined_message
from tests.support.logs import capture_logs
from tests.support.rule_sets import evaluated
from tests.support.tables import each_row

RULE = '[[rule]]\nname = "{}"\nthen = [ {{ hold = "x" }} ]\n'
AWAY = '[[rule]]\nname = "away"\nthen = [ { redirect = "x@far.test" } ]\n'
FAULTY = "[[rule]]\nname = 3\n"
CONFIG = """\
hostname = "relay.example.test"
state_dir = "state"
[mailboxes]
domains = ["acme.test", "beta.test", "far.test"]
[[tenant]]
name = "acme"
domains = ["acme.test"]
may = []
[[tenant]]
name = "beta"
domains = ["beta.test"]
"""


class Site:
    """A configuration with the tenants acme and beta, and a process that has it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "relay.toml"
        self.file.write_text(CONFIG)
        (folder / "accounts.toml").touch(mode=0o600)
        for name in ("acme", "beta"):
            (folder / "policies" / name / "groups").mkdir(parents=True)
        (folder / "state").mkdir()
        self.write("acme", RULE.format("old"))
        self.write("beta", RULE.format("beta"))
        self.active: ActiveConfiguration | None = None

    def write(self, tenant: str, text: str | bytes, name: str = "10.toml") -> None:
        octets = text.encode() if isinstance(text, str) else text
        (self.folder / "policies" / tenant / name).write_bytes(octets)

    def start(self) -> None:
        self.close()
        self.active = ActiveConfiguration(self.file, {}, clock=SystemClock())
        self.active.keep_sets()

    def reload(self) -> None:
        assert self.active is not None
        self.active.use(self.active.read(lambda _: None))

    def close(self) -> None:
        if self.active is not None:
            self.active.close()

    def names(self, tenant: str = "acme") -> list[str] | None:
        assert self.active is not None
        rules = self.active.now.rules.tenants[tenant].rules
        return None if rules is None else [one.name for one in rules.rules]

    @property
    def trouble(self) -> str:
        assert self.active is not None
        return self.active.impaired()

    def kept(self, tenant: str = "acme") -> list[str]:
        """The names of the rules in each copy."""
        home = self.folder / "state/policies" / tenant
        return [one.name for each in home.iterdir() for one in read_rules(each).rules]


@contextmanager
def site_in(folder: Path):
    site = Site(folder)
    try:
        yield site
    finally:
        site.close()


@pytest.fixture
def site(tmp_path):
    with site_in(tmp_path) as site:
        yield site


def test_a_fault_at_a_reload_leaves_the_old_rules_of_this_tenant(site):
    site.start()
    site.write("acme", FAULTY)
    site.write("beta", RULE.format("newer"))
    with capture_logs() as logs:
        site.reload()
    assert (site.names(), site.names("beta")) == (["acme/old"], ["beta/newer"])
    assert site.trouble == "old rules are in force for the tenants acme"
    agreed = site.active.agreed()["rules"]
    assert [one for one in logs if "10.toml:2: rule 1: name" in one.get("fault", "")]
    site.write("acme", RULE.format("new"))
    site.reload()
    assert (site.names(), site.trouble, site.kept()) == (["acme/new"], "", ["new"])
    assert site.active.agreed()["rules"] != agreed


def test_a_sender_that_a_route_names_is_for_rules_of_all_mail_alone(site):
    hop = 'next_hop = "smtp://h.test:25"\nsender = "web7@provider.test"\n'
    text = CONFIG.replace("may = []", 'may = ["set_sender"]', 1)
    site.file.write_text(f'{text}[[route]]\ndomain = "*"\n{hop}')
    for folder in ("acme", "."):
        site.write(
            folder, AWAY.replace("redirect = ", "set_sender = ").replace("x@far", "web7@provider")
        )
    with capture_logs() as logs:
        site.start()
    assert [one.name for one in site.active.now.rules.operator.rules] == ["away"]
    assert site.names() is None
    told = (
        'set_sender: found "web7@provider.test", expected an address of an own domain: acme.test, '
    )
    assert [one for one in logs if told in one.get("fault", "")]


def test_a_start_with_a_fault_uses_the_last_good_rules_and_their_groups(site):
    site.write("acme", "a@acme.test\n", "groups/g.txt")
    site.write("acme", RULE.format("old") + 'when = { sender = "group:g" }\n')
    site.start()
    site.write("acme", FAULTY)
    site.write("acme", b"\xff", "groups/g.txt")
    for _ in range(2):
        with capture_logs() as logs:
            site.start()
        assert (site.names(), site.names("beta")) == (["acme/old"], ["beta/beta"])
        told = " ".join(one.get("fault", "") for one in logs)
        assert "10.toml:2: rule 1: name" in told
        assert "groups/g.txt:1: found the byte 0xff" in told
    site.reload()
    assert site.names() == ["acme/old"]


@pytest.mark.parametrize("how", ["reload", "start"])
def test_old_rules_are_not_used_beyond_what_the_tenant_may_now(site, how):
    site.file.write_text(CONFIG.replace("may = []", 'may = ["redirect"]'))
    site.write("acme", AWAY)
    site.start()
    assert site.names() == ["acme/away"]
    site.file.write_text(CONFIG)
    getattr(site, how)()
    assert site.names() is None
    [fault] = site.active.now.tenants["acme"].faults
    assert 'or "redirect" in the key may of [[tenant]] "acme"' in str(fault)


def test_a_damaged_copy_is_not_used(site):
    site.start()
    [copy] = (site.folder / "state/policies/acme").iterdir()
    (copy / "10.toml").write_text(RULE.format("another"))
    site.start()
    assert site.kept() == ["old"]
    (copy / "10.toml").write_text(RULE.format("another"))
    site.write("acme", FAULTY)
    with capture_logs() as logs:
        site.start()
    assert site.names() is None
    [why] = [one["error"] for one in logs if "damaged" in one["event"]]
    assert why.endswith(f"expected {copy.name}")


def test_the_copy_of_a_tenant_that_is_gone_is_removed(site):
    site.start()
    start = CONFIG.index('[[tenant]]\nname = "acme"')
    site.file.write_text(CONFIG[:start] + CONFIG[CONFIG.index('[[tenant]]\nname = "beta"') :])
    with pytest.raises(
        SettingsError,
        match=r"relay\.toml:5: tenant: found the directory .*acme, .*add one, or move",
    ):
        site.reload()
    assert site.kept() == ["old"]
    (site.folder / "policies/beta").rename(site.folder / "policies/gamma")
    with pytest.raises(SettingsError, match=r"gamma, expected .* of this name \(beta has none\)"):
        site.reload()
    (site.folder / "policies/gamma").rename(site.folder / "policies/beta")
    (site.folder / "policies/acme").rename(site.folder / "aside")
    site.reload()
    assert [one.name for one in (site.folder / "state/policies").iterdir()] == ["beta"]


@each_row(
    "sender, to, tenants",
    [
        ("a@alias.test", "b@far.test", ("acme",)),
        ("a@alias.test", "b@acme.test", ("acme",)),
        ("a@acme.test", "b@alias.test", ("acme",)),
        ("a@beta.test", "b@alias.test", ("beta", "acme")),
        ("a@far.test", "b@alias.test", ("acme",)),
    ],
)
def test_a_domain_that_is_an_alias_is_of_the_same_tenant(site, sender, to, tenants):
    site.file.write_text(CONFIG + '[[domain]]\nname = "alias.test"\nalias_of = "acme.test"\n')
    site.write("acme", RULE.format("own") + 'when = { recipient = "group:own" }\n')
    site.start()
    read = load(site.file, {})
    domains = ["acme.test", "alias.test", "beta.test", "far.test"]
    message = examined_message(
        sender,
        [to],
        b"Subject: x\r\n\r\n",
        source=Source.SMTP,
        local_domains=domains,
        is_trusted=True,
    )
    strict = book_of(load_strictly(read, site.file), read)
    for rules in (site.active.now.rules, strict):
        verdict = evaluated(rules, message)
        assert verdict.tenants == tenants
        held = "acme/own" in {each.rule for each in verdict.hits}
        assert held == (to != "b@far.test")


@pytest.mark.parametrize("name", ["acme/x", "beta/"])
def test_the_operator_has_no_rule_with_the_name_of_a_tenant(site, name):
    (site.folder / "policies/10.toml").write_text("\n" + RULE.format(name))
    with pytest.raises(SettingsError, match=r"policies/10\.toml:2: .*the name of a tenant"):
        site.start()
    (site.folder / "policies/10.toml").write_text(RULE.format("gamma/x"))
    site.start()


@pytest.mark.parametrize(
    "harm",
    [
        lambda home: (home / "10.toml").write_bytes(os.urandom(3000)),
        lambda home: (home / "10.toml").write_bytes(b'[[rule]]\nname = "\x00"\n'),
        lambda home: (home / "10.toml").write_text(RULE.format("n" * 200)),
        lambda home: (home / "10.toml").write_text("x = " + "[" * 5000),
        lambda home: (home / "10.toml").write_text(f"x = {'9' * 30}"),
        lambda home: (home / "10.toml").symlink_to("../beta/10.toml"),
        lambda home: (home / "groups/g.txt").symlink_to("/etc/passwd"),
        lambda home: os.mkfifo(home / "10.toml"),
        lambda home: [(home / f"{number}.toml").touch() for number in range(501)],
        lambda home: ((home / "groups").rmdir(), (home / "groups").touch()),
        lambda home: ((home / "groups").rmdir(), home.rmdir(), home.touch()),
        lambda home: ((home / "groups").rmdir(), home.rmdir()),
        lambda home: Path(os.fsdecode(os.fsencode(home) + b"/\xff.toml")).write_text(FAULTY),
    ],
    ids=[
        "noise",
        "NUL",
        "long name",
        "deep",
        "number",
        "link",
        "link of a group",
        "FIFO",
        "501 files",
        "groups",
        "a file",
        "missing",
        "name of a file",
    ],
)
def test_what_a_tenant_does_harms_no_other(site, harm):
    (site.folder / "policies/acme/10.toml").unlink()
    harm(site.folder / "policies/acme")
    site.start()
    assert (site.names(), site.names("beta")) == (None, ["beta/beta"])
    [fault, *_] = site.active.now.tenants["acme"].faults
    assert str(fault).startswith(str(site.folder / "policies/acme"))
    assert any(word in fault.message for word in ("expected", "cannot be read", "found"))


@settings(max_examples=20, deadline=None)
@given(octets=st.binary(max_size=300), group=st.binary(max_size=100))
def test_noise_of_one_tenant_leaves_the_rules_of_others_as_they_are(octets, group):
    with TemporaryDirectory() as folder, site_in(Path(folder)) as site:
        site.start()
        before = site.active.now.rules
        site.write("acme", octets)
        site.write("acme", group, "groups/g.txt")
        with capture_logs():
            for again in (site.reload, site.start):
                again()
                after = site.active.now.rules
                for old, new in (
                    (before.operator, after.operator),
                    (before.tenants["beta"].rules, after.tenants["beta"].rules),
                ):
                    assert replace(new, loaded=old.loaded) == old
