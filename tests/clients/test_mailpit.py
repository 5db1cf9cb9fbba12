"""Programs for Mailpit, as they are published, against `relay dev`: each call that Relay answers."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import node, run
from tests.support.dev_process import DevProcess

TOKEN = "0123456789abcdef-token"
CONTENT = b"""\
From: Shop <shop@shop.example>
To: Ann <ann@customer.example>
Subject: Your order
Date: Mon, 2 Jan 2006 15:04:05 -0700
Message-ID: <order@shop.example>
Content-Type: multipart/mixed; boundary=b

--b
Content-Type: text/plain

Hello.
--b
Content-Type: text/plain
Content-Disposition: attachment; filename=note.txt

attached
--b--
""".replace(b"\n", b"\r\n")


@pytest.fixture(scope="module", params=["loopback", "token"])
def relay(request: pytest.FixtureRequest, dev_module) -> DevProcess:
    options = ("--listen-all", "--token", TOKEN) if request.param == "token" else ()
    return dev_module("--no-demo", *options)


@pytest.fixture
def url(relay: DevProcess) -> str:
    answer = relay.request("DELETE", "/api/v1/messages", None, _authorized(relay))
    assert answer.status == 200
    return f"http://127.0.0.1:{relay.http[1]}"


def _authorized(relay: DevProcess) -> dict[str, str]:
    return {"Authorization": f"Bearer {relay.ready['token']}"}


def javascript(relay: DevProcess, folder: Path, program: str, *, url: str) -> Any:
    """Run the body of an async function; return what it returns, by JSON."""
    file = folder / "program.js"
    file.write_text(_PROLOGUE + program + _EPILOGUE)
    secret = {"TOKEN": TOKEN} if relay.ready["token"] == TOKEN else {}
    return json.loads(run([node("mailpit-api"), str(file)], folder, URL_=url, **secret))


_PROLOGUE = """\
const url = process.env.URL_, token = process.env.TOKEN;
const auth = token ? { username: 'any', password: token } : undefined;
const fails = (promise) => promise.then(() => { throw new Error('it works'); }, (e) => e.message);
(async () => {
"""
_EPILOGUE = """
})().then((found) => console.log(JSON.stringify(found)), (e) => { console.error(e); process.exit(1); });
"""


def test_each_method_of_mailpit_api(relay: DevProcess, url: str, tmp_path: Path) -> None:
    program = """
    const { MailpitClient } = require('mailpit-api');
    const client = new MailpitClient(url, auth ? { auth } : undefined);
    const sent = [];
    for (const subject of ['Welcome aboard', 'Invoice'])
      sent.push((await client.sendMessage({ From: { Email: 'a@shop.example', Name: 'Shop' },
        To: [{ Email: 'ann@customer.example', Name: 'Ann' }], Bcc: ['bcc@customer.example'], Subject: subject,
        Text: 'The code is 4711.', HTML: '<b>4711</b>', Headers: { 'X-Test': '1' }, Tags: ['x'],
        Attachments: [{ Content: 'aGVsbG8=', Filename: 'a.txt', ContentType: 'text/plain' }] })).ID);
    const list = await client.listMessages(0, 1);
    const waited = await client.waitForMessage({ query: 'subject:"Welcome aboard"' });
    const exactly = await client.waitForMessages({ query: 'to:ann@customer.example', count: 2, exact: true });
    const all = await client.waitForMessages({ timeout: 2000 });
    const unread = (await client.searchMessages({ query: 'is:unread', tz: 'Europe/Berlin' })).messages_count;
    const marked = await client.setReadStatus({ Read: true });
    const afterMark = (await client.listMessages()).unread;
    const some = [await client.setReadStatus({ IDs: [sent[0]], Read: false }),
                  await client.setReadStatus({ Search: 'invoice', Read: false }, { tz: 'UTC' })];
    const latest = await client.getMessageSummary();
    const part = await client.getMessageAttachment(latest.ID, latest.Attachments[0].PartID);
    const headers = await client.getMessageHeaders();
    const source = await client.getMessageSource(sent[0]);
    const html = await client.renderMessageHTML(), text = await client.renderMessageText(sent[0]);
    const check = await client.htmlCheck(), relays = (await client.getConfiguration()).MessageRelay.Enabled;
    const info = await client.getInfo(), tags = await client.getTags();
    const refused = [await fails(client.spamAssassinCheck()), await fails(client.getMessageSummary('unknown')),
      await fails(client.sendMessage({ From: { Email: 'nobody' }, To: [] })), await fails(client.getChaosTriggers()),
      await fails(client.releaseMessage('latest', { To: ['me@office.test'] }))];
    const removed = [await client.deleteMessagesBySearch({ query: 'welcome' }),
                     await client.deleteMessages({ IDs: [sent[1]] }), await client.deleteMessages()];
    await client.waitForMessages({ query: 'from:shop', count: 0 });
    return { sent, list, waited: waited.Subject, exactly: exactly.messages.length, all: all.messages_count, unread, marked,
      afterMark, some, latest, part: [part.type, await part.text()], headers, source, html, text, info, tags, refused, removed, check, relays };
    """
    found = javascript(relay, tmp_path, program, url=url)
    assert [found["list"]["messages"][0]["ID"], found["list"]["total"]] == [found["sent"][1], 2]
    assert (found["waited"], found["exactly"], found["all"]) == ("Welcome aboard", 2, 2)
    assert (found["unread"], found["afterMark"]) == (1, 0)
    assert {found["marked"], *found["some"], *found["removed"]} == {"ok"}
    assert found["latest"]["Bcc"] == [{"Name": "", "Address": "bcc@customer.example"}]
    assert found["part"] == ["text/plain", "hello"]
    assert found["headers"]["X-Test"] == ["1"]
    assert "Subject: Welcome aboard\r\n" in found["source"]
    assert "<b>4711</b>" in found["html"]
    assert found["text"].strip() == "The code is 4711."
    assert (found["info"]["Messages"], found["tags"]) == (2, ["x"])
    assert (found["relays"], found["check"]["Total"]["Nodes"]) == (False, 1)
    expected = ("404", "404", "is not an address", "404", "403 Forbidden")
    assert all(text in said for text, said in zip(expected, found["refused"], strict=True))


def test_the_events_of_the_last_mailpit_api_that_has_them(
    relay: DevProcess, url: str, tmp_path: Path
) -> None:
    node("mailpit-api-with-events")
    program = """
    const { MailpitClient } = require('mailpit-api-with-events');
    const client = new MailpitClient(url, auth);
    const kinds = [], stop = client.onEvent('*', (event) => kinds.push(event.Type));
    const wait = async (kind, call) => { const event = client.waitForEvent(kind, 30000); await call(); return (await event).Data; };
    await wait('stats', async () => {});
    const mail = { From: { Email: 'a@shop.example' }, To: [{ Email: 'ann@customer.example' }], Subject: 'Welcome', Text: 'x' };
    const found = await wait('new', () => client.sendMessage(mail)), IDs = [found.ID];
    const update = await wait('update', () => client.setReadStatus({ IDs, Read: true }));
    const removal = await wait('delete', () => client.deleteMessages({ IDs }));
    const truncate = await wait('truncate', () => client.deleteMessages());
    stop();
    client.disconnect();
    return { found, update, removal, truncate, kinds: kinds.filter((kind) => kind !== 'stats') };
    """
    said = javascript(relay, tmp_path, program, url=url)
    assert said["kinds"] == ["new", "update", "delete", "truncate"]
    key = said["found"]["ID"]
    assert (said["found"]["Subject"], said["found"]["From"]["Address"]) == (
        "Welcome",
        "a@shop.example",
    )
    assert (said["update"], said["removal"]) == ({"ID": key, "Read": True}, {"ID": key})
    assert said["truncate"] is None


_CYPRESS = """
    const { readFileSync } = require('fs');
    const file = require.resolve('cypress-mailpit/package.json').replace('package.json', 'dist/src/MailpitCommands.js');
    const wrapped = (promise) => ({ then: (next, failed) => wrapped(promise.then(next, failed)) });
    globalThis.Cypress = { expose: () => url, config: () => 3000 };
    globalThis.cy = {
      env: () => wrapped(Promise.resolve(token ? { MAILPIT_USERNAME: 'any', MAILPIT_PASSWORD: token } : {})),
      wrap: (value) => wrapped(Promise.resolve(value)),
      wait: (ms) => wrapped(new Promise((done) => setTimeout(done, ms))),
      request: ({ method, url, body, qs, auth }) => wrapped((async () => {
        const target = new URL(url);
        for (const [name, value] of Object.entries(qs ?? {})) target.searchParams.set(name, value);
        const headers = auth ? { Authorization: 'Basic ' + btoa(`${auth.user}:${auth.pass}`) } : {};
        if (body !== undefined) headers['Content-Type'] = 'application/json';
        const answer = await fetch(target, { method, headers, body: body && JSON.stringify(body) });
        const text = await answer.text();
        if (!answer.ok) throw new Error(`${answer.status}: ${text}`);
        const isJson = answer.headers.get('content-type').includes('json');
        return { status: answer.status, body: isJson ? JSON.parse(text) : text };
      })()),
    };
    const { MailpitCommands } = await import('data:text/javascript,' + encodeURIComponent(readFileSync(file, 'utf8')));
    const mailpit = new MailpitCommands(), used = new Set();
    const call = (name, ...values) => { used.add(name); return mailpit[name](...values); };
"""


def test_each_command_of_cypress_mailpit(relay: DevProcess, url: str, tmp_path: Path) -> None:
    program = """
    await call('mailpitNotHasEmailsBySubject', 'Hello');
    await call('mailpitSendMail');
    await call('mailpitSendMail', { subject: 'Second one', to: [{ Email: 'bob@example.com', Name: 'Bob' }],
      attachments: [{ Content: 'aGVsbG8=', FileName: 'a.txt', ContentType: 'text/plain' }], htmlBody: '<i>x</i>' });
    await call('mailpitHasEmailsBySubject', 'Second one');
    await call('mailpitHasEmailsByTo', 'bob@example.com');
    await call('mailpitHasEmailsBySearch', 'has:attachment');
    await call('mailpitNotHasEmailsBySearch', 'subject:nothing');
    await call('mailpitNotHasEmailsByTo', 'nobody@example.com', 0, 50, { timeout: 1000 });
    const all = await call('mailpitGetAllMails');
    const counts = [all.messages_count, (await call('mailpitGetEmailsBySubject', 'Hello Mailpit')).messages_count,
      (await call('mailpitGetEmailsByTo', 'jane@example.com')).messages_count,
      (await call('mailpitSearchEmails', 'bcc:bcc@example.com', 0, 1)).messages_count];
    const mail = await call('mailpitGetMail');
    const shown = [await call('mailpitGetSubject', mail), await call('mailpitGetRecipientAddress', mail),
      await call('mailpitGetFromAddress', mail), await call('mailpitGetAttachments', mail),
      (await call('mailpitGetMailHTMlBody', mail)).trim(), (await call('mailpitGetMailTextBody', mail)).trim()];
    const unread = async () => (await mailpit.mailpitGetAllMails()).unread;
    const marks = [await unread()];
    for (const [name, ...values] of [['mailpitSetAllEmailStatusAsRead'], ['mailpitSetStatusAsUnRead', mail],
        ['mailpitSetStatusAsRead', [mail]], ['mailpitSetAllEmailStatusAsUnRead']]) {
      await call(name, ...values);
      marks.push(await unread());
    }
    const spam = [await fails(call('mailpitGetMailSpamAssassinSummary', mail)),
                  await fails(call('mailpitGetMailSpamAssainSummary', mail))];
    await call('mailpitDeleteEmailsBySearch', 'subject:Second');
    const left = (await mailpit.mailpitGetAllMails()).total;
    await call('mailpitDeleteAllEmails');
    const every = [...MailpitCommands.parentCypressCommands, ...MailpitCommands.childCypressCommands];
    return { counts, shown, marks, spam, left, end: (await mailpit.mailpitGetAllMails()).total,
             unused: every.filter((name) => !used.has(name)) };
    """
    found = javascript(relay, tmp_path, _CYPRESS + program, url=url)
    assert found["unused"] == []
    assert found["counts"] == [2, 1, 1, 2]
    who = [["bob@example.com"], "from@example.com", ["a.txt"]]
    *shown, html, text = found["shown"]
    assert (shown, text) == (["Second one", *who], "hello from mailpit")
    assert "<i>x</i>" in html
    assert found["marks"] == [1, 0, 1, 0, 2]
    assert [one[:3] for one in found["spam"]] == ["404", "404"]
    assert (found["left"], found["end"]) == (1, 0)


def test_each_call_of_mailpit_api_client(
    relay: DevProcess, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It knows no login; httpx takes that from the URL."""
    api_of = pytest.importorskip("mailpit.client.api").API
    httpx = pytest.importorskip("httpx")
    monkeypatch.setenv("NO_PROXY", "*")
    has_token = relay.ready["token"] == TOKEN
    api = api_of(url.replace("//", f"//any:{TOKEN}@") if has_token else url)
    ids = [
        relay.submit("bounces@shop.example", ["ann@customer.example"], content)
        for content in (CONTENT, CONTENT.replace(b"order", b"other"), CONTENT)
    ]
    messages = api.get_messages(limit=2, start=1)
    assert (messages.total, messages.unread, messages.count, messages.start) == (3, 3, 2, 1)
    assert [one.id for one in messages.messages] == [ids[1], ids[0]]
    message = api.get_message(ids[0])
    assert (message.subject, message.message_id, message.text.strip()) == (
        "Your order",
        "order@shop.example",
        "Hello.",
    )
    assert (message.from_.address, message.to[0].name, message.read) == (
        "shop@shop.example",
        "Ann",
        True,
    )
    assert message.date.year == 2006
    [attached] = message.attachments
    assert api.get_message_attachment(ids[0], attached.part_id) == "attached"
    with pytest.raises(KeyError, match="delivered_to"):  # it fails with Mailpit too
        api.get_message_headers(ids[0])
    with pytest.raises(httpx.HTTPStatusError, match="400"):
        api.put_messages([ids[0]], "Read", value=True)
    api.delete_messages(ids[:2])
    assert [one.id for one in api.get_messages().messages] == [ids[2]]
    api.delete_messages([])
    assert api.get_messages().total == 0
