"""Programs that other people have published, used as their users do, each in a process of its own.

    python -m tests.clients.program_flows graphish

test_programs.py runs them where graph.microsoft.com is a relay. In alice's inbox are the messages
"Report", with the attachment a.txt, and "Lunch"; what is sent goes to the customer. Each import is
that of one program.
"""

import asyncio
import json
import os
import poplib
import queue
import smtplib
import ssl
import subprocess
import sys
from collections.abc import Callable
from email import policy
from email.message import EmailMessage
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.request import urlopen

import pytest

from tests.support.relay_process import until

ALICE, CUSTOMER = "alice@example.test", "customer@shop.example"
# What has come to the customer after each flow.
SENT = {
    "graphish": [],
    "graphplug": ["FW: Report", "RE: Report", "many 0", "many 1", "many 2", "one"],
    "iobox": ["FW: Report", "draft", "sent"],
    "je_mail_thunder": ["large", "small"],
    "m365ctl": ["FW: Report", "RE: Report", "changed"],
    "m365proxy": ["by SMTP"],
    "mgraphctl": ["FW: Report", "RE: Report", "draft", "large", "small"],
    "outlook_graph_mcp": ["FW: Report", "RE: Report", "RE: Report", "sent"],
    "benethos_mailbox_service": ["large"],
    "myoffice": ["FW: Report", "RE: Report", "RE: Report", "changed", "x"],
}


def mime(subject: str, sender: str, to: str, attach: bytes = b"") -> EmailMessage:
    """A message with its attachment, if there is one."""
    message = EmailMessage(policy.SMTP)
    message["From"], message["To"], message["Subject"] = sender, to, subject
    message.set_content("Numbers.\n")
    if attach:
        message.add_attachment(attach, maintype="text", subtype="x", filename="a.txt")
    return message


def received(user: str, sender: str) -> tuple[EmailMessage, EmailMessage]:
    """What is in a user's inbox before each flow."""
    return mime("Report", sender, user, b"a"), mime("Lunch", sender, user)


def call(command: str) -> str:
    """What a program prints, which has to end with 0."""
    done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout} {done.stderr}"
    return done.stdout


def graphish() -> None:
    from graphish import Delete, GraphConnector, MailFolder, Search
    from graphish.message import Message
    from graphish.users import Users

    connector = GraphConnector("shop@example.test", "any", "contoso")
    assert ALICE in Users(connector).get
    inbox = connector.invoke("GET", f"users/{ALICE}/mailFolders/inbox/messages").json()["value"]
    one = Message(connector, inbox[-1], ALICE)
    assert (one.subject, one.fromAddress, one.hasAttachments) == ("Report", CUSTOMER, True)
    assert f"To: {ALICE}" in one.headers
    assert MailFolder(connector, ALICE).create("Phishing")["displayName"] == "Phishing"
    Delete(connector, ALICE).delete_search_message("inbox", one.id)
    path = f"users/{ALICE}/mailFolders/deleteditems/messages"
    assert connector.invoke("GET", path).json()["value"][0]["subject"] == "Report"
    with pytest.raises(AssertionError, match="NotImplemented"):
        Search(connector, userPrincipalName=ALICE).create("s", "inbox", "isRead eq false")


def graphplug() -> None:
    from graphplug import GraphClient

    async def run() -> None:
        async with GraphClient.app_only("contoso", "shop@example.test", "any") as graph:
            mail, at = graph.mail, {"user": ALICE}
            unread = [one async for one in mail.inbox(unread_only=True, **at)]
            assert [one["subject"] for one in unread] == ["Lunch", "Report"]
            [report] = [one async for one in mail.inbox(search="subject:report", **at)]
            assert report["hasAttachments"] is True
            assert (await mail.mark_read(report["id"], **at))["isRead"] is True
            await mail.reply(report["id"], "Thanks.", **at)
            await mail.forward(report["id"], CUSTOMER, "See below.", **at)
            await mail.send(CUSTOMER, "one", "x", attachments=["a.txt"], reply_to=ALICE, **at)
            many = [{"to": CUSTOMER, "subject": f"many {n}"} for n in range(3)]
            sent = await mail.send_many(many, **at)
            assert [one["status"] for one in sent] == [202, 202, 202]
            moved = await mail.move(report["id"], "archive", **at)
            found = await mail.get_many([moved["id"]], select="subject", **at)
            assert [one["body"]["subject"] for one in found] == ["Report"], found
            gone = await mail.delete_many([moved["id"]], **at)
            assert [one["status"] for one in gone] == [204]

    asyncio.run(run())


def iobox() -> None:
    from iobox.providers.base import EmailQuery
    from iobox.providers.o365.email import OutlookProvider
    from O365 import Account

    account = Account(("desktop", "any"))
    account.authenticate(handle_consent=lambda url: urlopen(url).url)
    account.con.get("https://graph.microsoft.com/v1.0/me")  # opens the session that iobox expects
    box = OutlookProvider(SimpleNamespace(get_account=lambda: account))
    [report] = [one["message_id"] for one in box.search_emails(EmailQuery(raw_query="report"))]
    assert "Numbers." in box.get_email_content(report)["body"]
    box.send_message(CUSTOMER, "sent", "x", bcc=ALICE, attachments=["a.txt"])
    box.forward_message(report, CUSTOMER, "See below.")
    box.create_draft(CUSTOMER, "draft", "<b>x</b>", content_type="html")
    box.send_draft(box.list_drafts()[0]["message_id"])
    box.add_tag(report, "Red")
    for change in (box.mark_read, box.archive, box.untrash, box.trash):
        change(report)


def je_mail_thunder() -> None:
    from je_mail_thunder.auth.oauth2 import OAuth2Auth
    from je_mail_thunder.core.mail import Mail
    from je_mail_thunder.providers.microsoft_graph import MicrosoftGraphProvider
    from je_mail_thunder.triggers.graph import GraphWebhookBackend
    from je_mail_thunder.utils.oauth2.oauth2 import OAuth2Settings

    auth = OAuth2Auth(OAuth2Settings(ALICE, access_token="alice"))
    mail, events = Mail("microsoft_graph", auth), queue.Queue[Any]()
    lunch, report = mail.get_messages(unread_only=True)
    assert (lunch.subject, report.attachments[0].read()) == ("Lunch", b"a")
    assert mail.get_message(report.message_id).sender == CUSTOMER
    store, port = MicrosoftGraphProvider(mail.account), int(os.environ["HOOK_PORT"])
    hook = GraphWebhookBackend(store, os.environ["HOOK_URL"], port=port)
    hook.bind(events.put)
    hook.start()
    until("it has subscribed", lambda: hook.describe()["subscribed"])
    mail.send(subject="small", to=[CUSTOMER, ALICE], text="x", headers={"X-Order": "7"})
    assert events.get(timeout=60).message.subject == "small"
    hook.stop()
    Path("large.bin").write_bytes(bytes(4 << 20))
    mail.send(subject="large", to=CUSTOMER, html="<p>x</p>", attachments=["large.bin", "a.txt"])
    mail.create_draft(subject="draft", to=CUSTOMER, text="x", attachments=["a.txt"])
    until(
        "the other one is sent",
        lambda: [one.subject for one in mail.get_messages("Drafts")] == ["draft"],
    )
    [draft] = mail.get_messages("Drafts")
    assert [(one.filename, one.read()) for one in draft.attachments] == [("a.txt", b"a")]
    mail.delete_message(draft.message_id)
    [deleted] = mail.get_messages("Deleted Items", query="subject eq 'draft'")
    assert deleted.to == (CUSTOMER,)


def m365ctl() -> None:
    config = "tenant_id = 'x'\nclient_id = 'x'\ncert_path = 'x'\ncert_public = 'x'\n"
    Path("config.toml").write_text(config + "scope.allow_drives = ['x']")
    call("m365ctl mail auth login")
    report = json.loads(call("m365ctl mail list --json").splitlines()[1])["id"]
    assert f'"{report}"' in call("m365ctl mail search --json subject:report")
    call(f"m365ctl mail export attachments {report} --out-dir saved")
    draft = call(f"m365ctl mail draft create --subject x --to {CUSTOMER} --confirm").split()[-1]
    for words in (
        f"draft update {draft} --subject changed --body x",
        f"attach add {draft} --file saved/a.txt",
        f"send {draft}",
        f"forward {report} --inline --to {CUSTOMER} --body See.",
        f"reply {report} --inline --all --body Thanks.",
        "folders create Inbox Projects",
        f"read --message-id {report} --yes",
        f"flag --message-id {report} --status flagged",
        f"categorize --message-id {report} --add Red",
        f"delete --message-id {report}",
        "move --since 2020-01-01T00:00:00Z --to-folder Inbox/Projects --plan-out plan",
        "move --from-plan plan",
    ):
        call(f"m365ctl mail {words} --confirm")
    call("m365ctl mail catalog refresh")
    assert "Messages:     4 live" in call("m365ctl mail catalog status")


def m365proxy() -> None:
    from m365proxy.auth import hash_password

    smtp, pop3 = (int(os.environ[name]) for name in ("SMTP_PORT", "POP3_PORT"))
    config = {
        "user": ALICE,
        "client_id": "a-b",
        "tenant_id": "contoso",
        "allowed_domains": ["*"],
        "mailboxes": [{"username": ALICE, "password": hash_password("secret")}],
        "tls": {"tls_cert": os.environ["CERTIFICATE"], "tls_key": os.environ["KEY"]},
        "bind": "127.0.0.1",
        "smtp_port": smtp,
        "pop3s_port": pop3,
        "logging": {"log_file": "proxy.log"},
    }
    Path("config.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "m365proxy", "-config", "config.json"]
    signed_in = subprocess.run([*command, "login"], capture_output=True, text=True, check=False)
    assert "Login successful" in signed_in.stdout, signed_in
    context = ssl.create_default_context(cafile=os.environ["AUTHORITY"])
    proxy = subprocess.Popen(command)
    try:
        until("it listens", lambda: b"is running" in Path("proxy.log").read_bytes())
        with smtplib.SMTP("localhost", smtp) as session:
            session.starttls(context=context)
            session.login(ALICE, "secret")
            session.send_message(mime("by SMTP", ALICE, CUSTOMER, b"%PDF"))
        box = poplib.POP3_SSL("localhost", pop3, context=context)
        box.user(ALICE)
        box.pass_("secret")  # its DELE goes without a token, to Graph too
        assert [b"Subject: Lunch" in box.retr(number)[1] for number in (1, 2)] == [True, False]
    finally:
        proxy.kill()
        proxy.wait()


def mgraphctl() -> None:
    def ask(words: str) -> Any:
        return json.loads(call(f"mgraphctl {words} --json"))

    ask("config set client_id desktop")
    ask("login --device-code --scopes extended")
    lunch, report = (one["id"] for one in ask("mail list --unread --after 2020-01-01")["items"])
    for words in ("search subject:report", "mail list --search subject:report"):
        assert f"'{report}'" in str(ask(words)["items"])
    Path("large.bin").write_bytes(bytes(4 << 20))
    for words in (
        f"mark {report} {lunch} --read --flag --category Red",
        f"reply {report} --body Thanks.",
        f"read {report} --headers --save-attachments saved",
        f"send --to {CUSTOMER} --subject small --body x --attach saved/a.txt",
        f"send --to {CUSTOMER} --subject large --body x --attach large.bin",
        f"forward {report} --to {CUSTOMER} --html --body <b>See</b>",
        f"drafts create --to {CUSTOMER} --subject draft --body x --importance high",
    ):
        ask(f"mail {words}")
    [draft] = ask("mail drafts list")["items"]
    ask(f"mail drafts send {draft['id']}")
    moved = ask(f"mail move {report} --folder archive")
    ask(f"mail delete {moved['id']}")


def outlook_graph_mcp() -> None:
    from mcp import ClientSession, StdioServerParameters
    from mcp.client.stdio import stdio_client

    settings = Path(".outlook-mcp")
    (settings / "attachments").mkdir(parents=True, mode=0o700)
    settings.chmod(0o700)
    Path(settings, "attachments", "b.txt").write_text("b")
    config = {"client_id": "desktop", "tenant_id": "contoso", "allow_unencrypted_token_cache": True}
    Path(settings, "config.json").write_text(json.dumps(config))
    call("outlook-mcp auth")
    server = StdioServerParameters(command="outlook-mcp", args=["serve"], env=dict(os.environ))

    async def run() -> None:
        async with stdio_client(server) as streams, ClientSession(*streams) as session:
            await session.initialize()

            async def use(tool: str, **given: Any) -> Any:
                done = await session.call_tool(f"outlook_{tool}", given)
                text = done.content[0].text
                assert not done.is_error, f"{tool}: {text}"
                return json.loads(text)

            await _outlook(use)

    asyncio.run(run())


async def _outlook(call: Callable[..., Any]) -> None:
    """What an agent does with the tools of outlook-graph-mcp."""
    assert (await call("whoami"))["email"] == ALICE
    listed = await call("list_inbox", unread_only=True, from_address=CUSTOMER)
    lunch, report = (one["id"] for one in listed["messages"])
    await call("list_inbox", uncategorized_only=True, after="2020-01-01", classification="focused")
    read = await call("read_message", message_id=report, format="full", include_sender_auth=True)
    assert read["subject"] == "Report"
    [found] = (await call("search_mail", query="subject:Report"))["messages"]
    assert found["id"] == report
    [file] = (await call("list_attachments", message_id=report))["attachments"]
    at = {"message_id": report, "attachment_id": file["id"]}
    await call("download_attachment", **at, save_path="saved.txt")
    delta = await call("list_inbox_delta")
    assert len(delta["messages"]) == 2, delta
    await call("flag_message", message_id=report, status="flagged")
    await call("categorize_message", message_id=report, categories=["Red category"])
    await call("batch_triage", message_ids=[lunch], action="mark_read", value="true")
    changed = await call("list_inbox_delta", delta_token=delta["delta_token"])
    assert {one["id"] for one in changed["messages"]} == {lunch, report}
    await call("create_folder", name="Projects")
    await call("copy_message", message_id=report, folder="Projects")
    await call("move_message", message_id=lunch, folder="Projects")
    thread = await call("list_thread", conversation_id=found["conversation_id"])
    assert {one["subject"] for one in thread["messages"]} == {"Report"}
    await call("send_message", to=[CUSTOMER], subject="sent", body="x", request_read_receipt=True)
    await call("reply", message_id=report, body="Thanks.", reply_all=True)
    await call("forward", message_id=report, to=[CUSTOMER], comment="See below.")
    draft = await call("create_draft", reply_to_message_id=report, body="More.")
    await call("attach_to_draft", draft_id=draft["draft_id"], attachment_paths=["b.txt"])
    await call("update_draft", draft_id=draft["draft_id"], body="Still more.", cc=[CUSTOMER])
    await call("send_draft", draft_id=draft["draft_id"])
    await call("delete_message", message_id=report, permanent=True)


def benethos_mailbox_service() -> None:
    from benethos_mailbox_service.data.models import MessageFilter, MessageUpdate
    from benethos_mailbox_service.data.protocols import ApiClient
    from benethos_mailbox_service.data.protocols.oauth import App, OAuthClient, RefreshingTokens
    from benethos_mailbox_service.data.providers.microsoft import MicrosoftProvider, endpoints

    async def run() -> None:
        client = OAuthClient(App(endpoints("contoso"), "desktop"), ApiClient())
        tokens = await client.poll_device((await client.device_code()).device_code)
        assert tokens.identity.email == ALICE
        refresh = [tokens.refresh_token]
        source = RefreshingTokens(client, lambda: refresh[-1], refresh.append)
        box = MicrosoftProvider(source)
        await box.verify()
        folders = {one.role and one.role.value: one for one in await box.list_folders()}
        inbox = folders["inbox"].id
        before = await box.folder_changes(inbox, None)
        first = await box.list_messages(inbox, limit=1, cursor=None)
        rest = await box.list_messages(inbox, limit=1, cursor=first.next_cursor)
        assert [one.subject for one in first.items + rest.items] == ["Lunch", "Report"]
        report = rest.items[0].id
        search = MessageFilter(text="report", has_attachments=True)
        [found] = (await box.list_messages("all", limit=9, cursor=None, search=search)).items
        assert found.id == report
        message = await box.get_message(report)
        file = await box.get_attachment(report, message.attachments[0].id)
        assert (message.text_body.strip(), file.data) == ("Numbers.", b"a")
        marks = MessageUpdate(unread=False, starred=True, add_keywords=["Red", "$answered"])
        marked = (await box.update_messages([report], marks))[report]
        assert (marked.unread, marked.starred) == (False, True), marked
        assert set(marked.keywords) == {"Red", "$answered"}
        projects = await box.create_folder("Projects", None)
        into = MessageUpdate(folder_ids=[projects.id])
        moved = (await box.update_messages([report], into))[report]
        assert (moved.id, moved.folder_ids) == (report, [projects.id])
        after = await box.folder_changes(inbox, before.token)
        assert after.removed == [report]
        large = mime("large", ALICE, CUSTOMER, bytes(4 << 20))
        sent = await box.send(large.as_bytes(), ALICE, [CUSTOMER])
        assert sent.sent_copy.subject == "large"
        draft = await box.save_draft(mime("first", ALICE, CUSTOMER).as_bytes(), None)
        second = await box.save_draft(mime("second", ALICE, CUSTOMER).as_bytes(), draft.id)
        assert b"Subject: second" in await box.get_draft(second.id)
        assert len((await box.thread_messages(moved.thread_id, 9)).messages) == 1
        await box.update_folder(projects.id, "Done", inbox)
        assert await box.delete_messages([report], False)
        assert await box.delete_messages([report], True) == {report: None}
        await box.delete_folder(projects.id)
        await box.close()

    asyncio.run(run())


def myoffice() -> None:
    def mail(words: str) -> Any:
        return json.loads(call(f"myoffice --json mail {words}"))

    call("myoffice login --client-id desktop")
    lunch, report = (one["id"] for one in mail("list --unread"))
    assert mail(f"read --id {report}")["subject"] == "Report"
    [found] = mail("search --query subject:report")
    assert found["id"] == report
    [file] = mail(f"attachments --id {report}")
    saved = f"--attachment-id {file['id']} --output saved.txt"
    mail(f"download-attachment --id {report} {saved}")
    assert Path("saved.txt").read_text() == "a"
    to = f"--to {CUSTOMER} --subject x --body <b>x</b>"
    draft = mail(f"draft {to} --attach-inline a.txt")["draftId"]
    for words in (
        f"send {to} --attach a.txt",
        f"draft-update --id {draft} --subject changed --body y",
        f"draft-send --id {draft}",
        f"reply --id {report} --body Thanks. --all",
        f"reply --id {report} --body See. --attach-inline a.txt",
        f"forward --id {report} --to {CUSTOMER} --body See.",
        f"mark --id {lunch}",
        f"move --id {lunch} --folder Captured",
        f"delete --id {report}",
    ):
        mail(words)
    assert len(mail("list --folder Captured")) == 1
    names = {one["name"]: one["totalItems"] for one in mail("folders")}
    assert (names["Captured"], names["Inbox"]) == (1, 0), names


if __name__ == "__main__":
    globals()[sys.argv[1]]()
