"""conf/cloud.toml, the configuration of the container image: its variables complete it, for a user without rights."""

import email
import os
import re
import shlex
import smtplib
import tomllib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest

from relay.base.settings.document import SettingsError, parse_document
from relay.base.settings.reader import load
from relay.base.sockets import has_ipv6
from tests.integration.test_dev_cloud import Cloud
from tests.support import relay_starts
from tests.support.dev_process import DevProcess
from tests.support.ports import free_port
from tests.support.relay_process import ROOT, RelayProcess, until
from tests.support.tables import each_row

TEXT = (ROOT / "conf/cloud.toml").read_text()
[ENV] = re.findall(r"^ENV ((?:.*\\\n)*.*)", (ROOT / "Containerfile").read_text(), re.MULTILINE)
IMAGE = dict(word.split("=", 1) for word in shlex.split(ENV.replace("\\\n", "")))
GIVEN = {
    "RELAY_HOSTNAME": "relay.contoso.example",
    "RELAY_TRUSTED": "127.0.0.2 2001:db8::/64",
    "M365_TENANT": "contoso.example",
    "M365_CLIENT_ID": "relay",
    "M365_CLIENT_SECRET": "s3cret",
    "M365_MAILBOX": "alice@example.test",
}
ALICE, SCANNER, OPS = GIVEN["M365_MAILBOX"], "scanner@contoso.example", "ops@contoso.example"
REPORTS = "route[0].next_hop: found"


def set_to(**changes: str | None) -> dict[str, str]:
    """The variables of the container; None: not set."""
    return {name: text for name, text in (IMAGE | GIVEN | changes).items() if text is not None}


@each_row(
    "changes, fault",
    [
        *[({name: None}, f"{name} to be set, or {name}_FILE (docs/cloud.md") for name in GIVEN],
        ({"RELAY_TRUSTED": "10.0.0.0/8 fc00::/6"}, "a network of your own, /7 or narrower"),
        ({"RELAY_TRUSTED": " "}, 'a network such as "192.0.2.0/24"'),
        ({"RELAY_TRUSTED": "10.1.0.0/16, ::1"}, 'no comma: "10.1.0.0/16 ::1/128"'),
        ({"M365_CLIENT_SECRET": ""}, "M365_CLIENT_SECRET to be more than an empty text, or M365_"),
        ({"RELAY_TRUSTED": None, "RELAY_TRUSTED_FILE": "/"}, "the file / to be readable (no regul"),
        ({"M365_TENANT_FILE": "x"}, "one of the environment variables M365_TENANT and M365_"),
        ({"RELAY_REPORTS": "mx", "RELAY_REPORTS_FILE": "x"}, f"{REPORTS}"),
        ({"RELAY_REPORTS": "ops@contoso.example"}, f"{REPORTS}"),
        ({"RELAY_REPORTS": "smtp://u:p4ss@h.example"}, f"{REPORTS}"),
        ({"RELAY_COPY_TO": "ops"}, "reports.copy_to: found"),
    ],
)
def test_what_is_missing_or_wrong_is_named(changes: dict[str, str | None], fault: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(fault)) as error:
        load(parse_document(ROOT / "conf/cloud.toml", TEXT), set_to(**changes))
    assert len(error.value.faults) == 1
    assert "p4ss" not in str(error.value)


def test_the_file_of_a_variable_goes_before_what_the_image_sets(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("smtp://smarthost.example:587\n")
    document = parse_document(tmp_path / "relay.toml", TEXT)
    files = {"RELAY_REPORTS_FILE": "secret", "M365_CLIENT_SECRET_FILE": f"{tmp_path}/secret"}
    settings = load(document, set_to(M365_CLIENT_SECRET=None, **files))
    hops = [settings.route[0].next_hop, settings.oauth[0].client_secret]
    assert hops == ["smtp://smarthost.example:587"] * 2
    assert settings.smtp[0].trusted_networks == ("127.0.0.2/32", "2001:db8::/64")
    for changes in ({}, {"RELAY_REPORTS": "", "RELAY_COPY_TO": ""}):
        settings = load(document, set_to(**changes))
        assert (settings.route[0].next_hop, settings.reports.copy_to) == ("", "")
    for rest in ("sender = '*@a.example'\nnext_hop = ''", "sender = '<>'"):
        text = f"{TEXT}[[route]]\ndomain = '*'\n{rest}\n"
        with pytest.raises(SettingsError, match=r"route\[3\]\.next_hop: .*this key is required"):
            load(parse_document(tmp_path / "relay.toml", text), set_to())


RULE = """
[[rule]]
name = "offers"
when = { subject = "offer" }
then = [{ hold = "the manager reads it first" }]
notice = "It waits."

[[rule]]
name = "as the mailbox"
when = { sender = "root@*" }
then = [{ set_sender = "alice@example.test" }]
"""


def subjects(cloud: Cloud, address: str) -> list[str]:
    """What is in the Inbox of a mailbox in the cloud."""
    return sorted(one["subject"] for one in cloud.messages(address, "inbox"))


@pytest.fixture
def beside(dev) -> DevProcess:
    """A relay beside the one that plays the cloud."""
    return dev("--cloud", "--no-demo")


@pytest.fixture
def service(beside) -> Iterator[RelayProcess]:
    """`relay serve` with this file and what the image gives, beside a Graph of this machine."""
    cloud = tomllib.loads(beside.config_file.read_text())
    [client] = cloud["oauth"]
    graph, *_ = [one["next_hop"] for one in cloud["route"] if one["next_hop"].startswith("graph:")]
    secrets = {"M365_CLIENT_ID": client["client_id"], "M365_CLIENT_SECRET": client["client_secret"]}
    secrets["RELAY_COPY_TO"] = OPS
    given = {name: text for name, text in set_to(**secrets).items() if name[:4] in ("RELA", "M365")}
    relay = RelayProcess(environment=given)
    (relay.folder / "policies").chmod(0o755)
    (relay.folder / "policies" / "10.toml").write_text(RULE)
    (relay.folder / "accounts.toml").unlink()
    text = re.sub("provider = .*\ntenant = .*", f'scope = "{client["scope"]}"', TEXT)
    for old, new in (
        ("[[oauth]]", f'[[oauth]]\ntoken_url = "{client["token_url"]}"'),
        ("graph://graph.microsoft.com", graph),
        ("shutdown_grace", 'expire_after = "10s"\nretry = ["1s"]\nshutdown_grace'),
        ("0.0.0.0:2525", f"127.0.0.1:{free_port()}"),
        ("*:8025", f"127.0.0.1:{free_port()}"),
        ("/var/lib/relay", f"{relay.folder}/state"),
    ):
        assert old in text
        text = text.replace(old, new)
    relay.config_file.write_text(text)
    relay.user = 0 if os.geteuid() else 10001
    try:
        yield relay
    finally:
        relay.close()


def test_who_sent_it_reads_by_graph_that_it_failed(
    service: RelayProcess, beside: DevProcess
) -> None:
    state, words = service.folder / "state", [*relay_starts.RELAY, "serve", "--config"]
    words.append(str(service.config_file))
    run = partial(relay_starts.run, words, cwd=service.folder, env=service.environment)
    service.folder.chmod(0o755)
    state.chmod(0o555)
    barred = run(user=service.user)
    assert (barred.returncode, barred.stdout) == (77, "")
    assert barred.stderr.startswith(f"state_dir: {state} is not a directory that this user can wri")
    state.chmod(0o700)
    service.start()
    ports = re.findall(r'"127\.0\.0\.1:(\d+)"', service.config_file.read_text())
    smtp, health = map(int, ports)
    given = service.config_file.read_text()
    service.config_file.write_text(given.replace("[delivery]", "[delivery]\nretry_by_class = 1"))
    again = run(user=service.user)
    assert (again.returncode, again.stderr) == (69, "")  # all goes to stdout
    assert re.match('{"at":.*"a key of relay.toml is of no use"', again.stdout)
    paths = ("/healthz", "/readyz", "/v1.0/me", "/connect/token")
    answers = [httpx.get(f"http://127.0.0.1:{health}{one}", trust_env=False) for one in paths]
    assert [one.status_code for one in answers] == [200, 200, 404, 404]

    def mail(sender: str, client: str = "127.0.0.2", subject: str = "scan") -> None:
        text = f"From: {sender}\r\nTo: ann@customer.example\r\nSubject: {subject}\r\n\r\nx"
        with smtplib.SMTP("127.0.0.1", smtp, source_address=(client, 0)) as printer:
            printer.sendmail(sender, "ann@customer.example", text)

    with pytest.raises(smtplib.SMTPRecipientsRefused, match="Relaying denied"):
        mail("alice@example.test", "127.0.0.3")
    mail("root@web7.contoso.example")
    until("it has left", lambda: '"status":"relayed"' in service.log)
    cloud = Cloud(beside)
    with cloud.client:
        for sender, subject, fault, report in (
            (SCANNER, "scan", "", "Undeliverable: scan"),  # which the mailbox may not send
            (ALICE, "large", "status = 413\ntimes = 1", "Undeliverable: large"),
            (ALICE, "late", "status = 503\nretry_after = 1", "Undeliverable: late"),  # it expires
            (ALICE, "offer", "", "Held: offer"),
        ):
            cloud.use(f"[[graph]]\nmethod = 'POST'\n{fault}\n" if fault else "")
            mail(sender, subject=subject)
            if subject == "late":
                until("it expires", lambda: '"status":"expired"' in service.log)
                cloud.use("")
            readers = (sender, OPS) if report[0] == "U" else (sender,)
            for reader in readers:
                until(report, lambda: report in subjects(cloud, reader))  # noqa: B023 - at once
            assert not [*state.glob("dead-letter/new/*")], report
        assert "Held: offer" not in subjects(cloud, OPS)
        [read] = cloud.messages(SCANNER, "inbox")
        assert read["from"]["emailAddress"]["address"] == ALICE
        assert "ann@customer.example" in read["bodyPreview"]
        [octets] = cloud.mime(SCANNER, "inbox")
        names = [one.get_filename() for one in email.message_from_bytes(octets).walk()]
        assert [one for one in names if one] == ["details.txt", "message.eml"]
        post = "[[graph]]\nmethod = 'POST'\nstatus = "
        cloud.use(f"{post}413\ntimes = 1\n{post}503\nretry_after = 1\n")
        mail(SCANNER)
        until("its report waits", lambda: f'"to":"{SCANNER}","status":"deferred"' in service.log)
    service._environment["RELAY_REPORTS"] = "reject:5.7.1 no way for reports"  # as in 0.5.0
    service.restart()
    mail(SCANNER)
    until("each report is kept", lambda: len([*state.glob("dead-letter/new/*")]) == 4)
    told = re.findall(r'"a report is a dead letter".*"to":"(.*?)".*no way for reports', service.log)
    assert sorted(told) == [OPS, SCANNER]
    assert service.faults() == []
    assert service.stop() == 0


def test_rules_may_be_missing_at_a_start_of_the_image(serve) -> None:
    """A volume that has relay.toml cannot have an empty folder; but one that is gone opens nothing."""
    port = free_port()
    config = {"observe": {"metrics": f"*:{port}"}}
    relay: RelayProcess = serve(start=False, config=config, environment={"RELAY_IMAGE": "1"})
    named = relay.config.pop("policy")
    relay.write_config(relay.config)
    folder = relay.folder / "policies"
    folder.rmdir()
    missing = f"found no folder of rules {folder}"
    assert f"warning: {missing}: there are none" in relay.cli("check").stderr
    assert missing in relay.start().log
    for host in ("127.0.0.1", *(["[::1]"] if has_ipv6() else [])):
        assert httpx.get(f"http://{host}:{port}/readyz", trust_env=False).text == "ready\n"
    assert relay.cli("reload").returncode == 0
    folder.mkdir(mode=0o755)
    (folder / "10.toml").write_text('[[rule]]\nname = "closed"\nthen = [{ reject = "no" }]')
    assert relay.cli("reload").returncode == 0
    folder.rename(relay.folder / "elsewhere")
    reloaded = relay.cli("reload")
    assert reloaded.returncode == 78
    assert missing in reloaded.stderr
    with pytest.raises(smtplib.SMTPDataError, match="no"), relay.smtp() as client:
        client.sendmail("alice@example.test", "bob@example.test", "x")
    assert relay.stop() == 0
    relay.write_config(relay.config | {"policy": named})
    assert relay.start(wait=False).wait_end() == 78
    relay.write_config(relay.config)
    relay._environment.clear()
    assert relay.start(wait=False).wait_end() == 78
