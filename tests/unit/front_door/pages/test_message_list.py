"""The list of messages as a browser without scripts gets it."""

import re
from html import unescape

from relay.front_door.pages.message_list import ListView, view_of
from relay.store.mailbox import mailbox_list
from tests.support.tables import each_row
from tests.unit.front_door.pages.conftest import submit

LINK = re.compile(
    r'<a id="open-[^"]+" data-row href="(messages/[^"]+)">(?:<span.*?</span>)?(.*?)</a>'
)


async def send(pages, *messages):
    """Send (subject, recipient) pairs, the last one last."""
    mails = [([to], f"Subject: {subject}\r\n\r\nx".encode()) for subject, to in messages]
    await submit(pages, *mails)


def subjects(text):
    return [unescape(subject) for _, subject in LINK.findall(text)]


def link(text, name):
    found = re.search(rf'<a(?: rel="\w+")? href="([^"]*)"[^>]*>{name}', text)
    assert found, name
    return "/" + unescape(found[1]).removeprefix("./")


async def test_messages_are_found_by_search_and_filters(pages):
    await send(pages, ("Invoice 1", "bob@example.test"), ("Invoice <2>", "ann@customer.test"))
    await send(pages, ("Hello", "gone+550@customer.test"))
    report = "Undeliverable: Hello"
    text = await pages.text("/")
    assert subjects(text) == [report, "Hello", "Invoice <2>", "Invoice 1"]
    assert subjects(await pages.text(link(text, "Reports"))) == [report]
    for query, expected in (
        ("q=invoice", ["Invoice <2>", "Invoice 1"]),
        ("q=hello", [report, "Hello"]),
        ("q=undeliverable", [report]),
        ("q=it+alice", []),  # words of the text of a report need kind=report
        ("q=undeliverable+has:attachment", []),
        ("q=hello&kind=report", [report]),
        ("q=hello&kind=x", [report, "Hello"]),
        ("q=gone&kind=report", [report]),
        ("q=to:customer.test+hello", ["Hello"]),
        ("q=state:captured", ["Invoice <2>"]),
        ("state=delivered", [report, "Invoice 1"]),
        ("mailbox=BOB@example.test", ["Invoice 1"]),
        ("mailbox=alice@example.test&state=failed", ["Hello"]),
    ):
        assert subjects(await pages.text(f"/?{query}")) == expected, query
    [key] = keys_of(await pages.text("/?q=subject:hello"))[1:]
    assert subjects(await pages.text(f"/?q=id:{key}")) == ["Hello"]


async def test_what_matches_nothing_is_named_and_can_be_removed(pages):
    await send(pages, ("Invoice", "bob@example.test"))
    text = await pages.text("/?q=nothing&state=failed")
    assert "No message matches <strong>the search nothing</strong>" in text
    assert subjects(await pages.text(link(text, "remove"))) == []
    assert subjects(await pages.text(link(text, "Show all messages"))) == ["Invoice"]


async def test_a_search_that_cannot_be_read_is_answered_with_a_sentence(pages):
    answer = await pages.get("/?q=form:%3Cb%3E")
    assert answer.status_code == 400
    assert "&#39;form:&#39; is not known; there are from:" in answer.text
    conflict = await pages.get("/?q=state:failed&state=held")
    assert "The search has state:failed, and the filter has held. Remove one." in conflict.text
    assert (await pages.get("/?before=x&newer=%00&state=x&y=1&y=2")).status_code == 200


async def test_pages_go_back_and_forth_while_mail_arrives(pages):
    await send(pages, *((f"m{number}", "bob@example.test") for number in range(120)))
    first = await pages.text("/?q=m")
    second = await pages.text(link(first, "Older"))
    await send(pages, ("m new", "bob@example.test"))
    third = await pages.text(link(second, "Older"))
    found = subjects(first) + subjects(second) + subjects(third)
    assert found == [f"m{number}" for number in reversed(range(120))]
    assert 'rel="next"' not in third
    assert subjects(await pages.text(link(third, "Newer"))) == subjects(second)
    assert "m new" in subjects(await pages.text(link(second, "Newer")))
    assert "m new" in subjects(await pages.text(link(third, "Newest")))


@each_row("steps", [1, 3, 30])
def test_the_trail_of_pages_is_bounded_and_leads_back(steps):
    view, seen = ListView(), []
    for number in range(1, steps + 1):
        place = view_of([("before", f"{number:x}-06gzy78nhccc7r9c")], 0).before
        fields = view.older(place)
        assert len(fields.get("newer", "")) < 1000
        seen.append(str(view.before) if view.before else "")
        view = view_of(list(fields.items()), 0)
    for expected in seen[: -min(steps, 20) - 1 : -1]:
        view = view_of(list(view.newer().items()), 0)
        assert (str(view.before) if view.before else "") == expected


async def marked(pages, action, *keys, **fields):
    """Send the form of the list with these messages marked; follow the redirect."""
    data = {"action": action, "id": list(keys)} | fields
    return await pages.post("/messages", data, follow_redirects=True)


def keys_of(text):
    return re.findall(r'name="id" value="([^"]+)"', text)


def unread(text):
    return re.findall(r'class="unread">.*?Unread: </span>([^<]*)</a>', text, re.DOTALL)


async def flags_of(pages, address):
    token = address.partition("@")[0] if address.endswith("@example.test") else "alice"
    answer = await pages.get(
        f"/v1.0/users/{address}/messages?$select=subject,isRead",
        headers={"authorization": f"Bearer {token}"},
    )
    return {one["subject"]: one["isRead"] for one in answer.json()["value"]}


async def test_a_subject_cannot_reorder_or_hide_what_is_next_to_it(pages):
    await send(pages, ("\u202eexe.\u2066ab\u200b", "bob@example.test"))
    page = await pages.text("/")
    message = await pages.text(f"/messages/{keys_of(page)[0]}?show=text")
    for text in (page, message):
        assert "\ufffdexe.\ufffdab\ufffd" in text
        assert not set(text) & set("\u202e\u2066\u200b")
    every = "a".join(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A))))
    await send(pages, (every, "ann+451x9@customer.test"))
    for path in ("/queue", f"/?q={every}"):
        assert "a".join("\ufffd" * len(every[::2])) in (text := await pages.text(path))
        assert not set(text) & set(every[::2])


async def test_marked_messages_are_read_and_unread_in_all_mailboxes(pages):
    await send(pages, ("one", "bob@example.test"), ("two", "ann@customer.test"))
    text = await pages.text("/")
    assert sorted(unread(text)) == ["one", "two"]
    assert sorted(keys_of(text)) == sorted(key.partition("/")[2] for key, _ in LINK.findall(text))
    answer = await marked(pages, "read", *keys_of(text), state="captured")
    assert answer.url.query == b"state=captured&done=read&count=2&of=2"
    assert "2 messages marked as read." in answer.text
    assert unread(await pages.text("/")) == []
    assert await flags_of(pages, "ann@customer.test") == {"two": True}
    await marked(pages, "unread", keys_of(text)[0])
    assert unread(await pages.text("/")) == ["two"]
    assert await flags_of(pages, "ann@customer.test") == {"two": False}
    assert "No message was marked." in (await marked(pages, "read")).text


async def test_a_deletion_is_confirmed_and_removes_messages_whole(pages):
    await send(pages, ("keep", "bob@example.test"), ("captured", "ann@customer.test"))
    await send(pages, ("delivered", "bob@example.test"), ("later", "x+451@customer.test"))
    text = await pages.text("/")
    paths = [path for path, subject in LINK.findall(text) if subject != "keep"]
    doomed = [path.removeprefix("messages/") for path in paths]
    assert len(doomed) == 3
    asked = await marked(pages, "delete", *doomed, q="e")
    assert "Delete 3 messages?" in asked.text
    assert len(subjects(await pages.text("/"))) == 4
    done = await marked(pages, "delete", *doomed, q="e", confirmed="yes")
    assert done.url.query.startswith(b"q=e&done=delete")
    assert "3 messages deleted." in done.text
    assert subjects(await pages.text("/")) == ["keep"]
    assert await flags_of(pages, "ann@customer.test") == {}
    assert await flags_of(pages, "bob@example.test") == {"keep": False}
    for key in doomed:
        assert (await pages.get(f"/messages/{key}")).status_code == 404
    counts = await pages.relay.daemon.base.spool.counts()
    assert (counts.unaccounted, sum(counts.entries.values())) == (0, 0)
    again = await marked(pages, "delete", *doomed, confirmed="yes")
    assert "0 messages deleted. The others are being delivered, or were gone already." in again.text


async def test_a_message_of_graph_is_deleted_with_its_original_and_its_steps(pages):
    alice = {"authorization": "Bearer alice"}
    recipient = {"emailAddress": {"address": "bob@example.test"}}
    message = {"subject": "sent", "toRecipients": [recipient]}
    sent = await pages.http.post("/v1.0/me/sendMail", json={"message": message}, headers=alice)
    graph_id = sent.headers["x-relay-message-id"]
    await pages.relay.settle()
    url = f"/relay/v1/messages/{graph_id}"
    assert (await pages.http.delete(url, headers=alice)).status_code == 204
    assert (await pages.get(url, headers=alice)).status_code == 404
    assert await flags_of(pages, "alice@example.test") == {}
    assert subjects(await pages.text("/")) == []
    found = await pages.get("/relay/v1/messages", headers=alice)
    assert found.json()["messages"] == []


async def test_a_scheduled_message_is_cancelled_by_its_deletion(pages):
    alice = {"authorization": "Bearer alice"}
    deferred = {"id": "SystemTime 0x3FEF", "value": "2999-01-01T00:00:00Z"}
    message = {
        "subject": "later",
        "singleValueExtendedProperties": [deferred],
        "toRecipients": [{"emailAddress": {"address": "bob@example.test"}}],
    }
    await pages.http.post("/v1.0/me/sendMail", json={"message": message}, headers=alice)
    text = await pages.text("/")
    assert subjects(text) == ["later"]
    assert re.search(r"sent\s+<time[^>]*>2999-01-01 00:00 UTC<", text)
    done = await marked(pages, "delete", *keys_of(text), confirmed="yes")
    assert "1 message deleted." in done.text
    assert subjects(done.text) == []
    assert await flags_of(pages, "alice@example.test") == {}


async def test_a_search_that_was_cut_off_goes_on_with_older(pages):
    await send(pages, *((f"m{number}", f"user{number}@example.test") for number in range(6)))
    pages.relay.daemon.base.journeys.places.lookup_s = 0.0
    pages.relay.daemon.base.journeys.places.index = None  # as in a service
    text = await pages.text("/?q=giraffe")
    assert "No message matches on this page" in text
    for _ in range(5):
        text = await pages.text(link(text, "Older"))
    assert ">Older</a>" not in text


async def test_flags_that_others_change_are_seen_at_the_next_request(pages, monkeypatch):
    """By a mail client in the Maildir, Graph, and Mailpit's API; however little time a search has, and
    the latter two where there are too many mailboxes to look at all.
    """
    names = ["by hand", "by graph", "by mailpit", "left"]
    await send(pages, *((name, f"u{at}@example.test") for at, name in enumerate(names)))
    pages.relay.daemon.base.journeys.places.lookup_s = 0.0

    async def shown() -> tuple[list[str], ...]:
        found = (await pages.get("/api/v1/search?query=is:unread")).json()
        mailpit = [one["Subject"] for one in found["messages"]]
        assert found["unread"] == found["messages_count"] == len(mailpit)
        every = await pages.text("/messages?action=read&q=is:unread")
        asked = [one for one in reversed(names) if f">{one}<" in every]
        assert f"{len(mailpit)} message" in every
        lists = unread(await pages.text("/")), subjects(await pages.text("/?q=is:unread"))
        return *lists, mailpit, asked

    assert await shown() == (names[::-1],) * 4
    [file] = (pages.relay.folder.path / "mail/example.test/u0/new").iterdir()
    file.rename(file.parents[1] / "cur" / f"{file.name}:2,S")
    assert await shown() == (names[:0:-1],) * 4
    (moved := file.parents[1] / ".Moved/cur").mkdir(parents=True)
    file = next((file.parents[1] / "cur").iterdir())
    file = file.rename(moved / "1795000000.M1P2.imap:2,")  # as Dovecot moves
    assert await shown() == (names[::-1],) * 4
    file.rename(f"{file}S")
    assert await shown() == (names[:0:-1],) * 4
    monkeypatch.setattr(mailbox_list, "_FREE_S", -10)
    assert await shown() == (names[:0:-1],) * 4
    await send(pages, ("late", "late@example.test"))
    names.append("late")
    assert await shown() == (names[:0:-1],) * 4
    at, token = "/v1.0/me/messages", {"authorization": "Bearer u1"}
    [copy] = (await pages.get(at, headers=token)).json()["value"]
    await pages.http.patch(f"{at}/{copy['id']}", json={"isRead": True}, headers=token)
    assert await shown() == (["late", "left", "by mailpit"],) * 4
    [key] = keys_of(await pages.text("/?q=mailpit"))
    await pages.http.put("/api/v1/messages", json={"IDs": [key], "Read": True})
    assert await shown() == (["late", "left"],) * 4
