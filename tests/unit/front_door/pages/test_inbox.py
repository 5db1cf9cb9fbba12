"""The list as an inbox: what rows show, what is done with all that match, from message to message."""

import asyncio
import re
from email.message import EmailMessage
from email.policy import SMTP
from html import unescape

from relay.base.clock import SystemClock
from relay.base.message.content import MemoryOctets
from relay.front_door.api.message_source import READ_OCTETS_MAX, read_preview
from relay.front_door.pages import message_list
from relay.front_door.pages.undo import PENDING_MAX, UNDO_S, PendingDeletions
from tests.support.tables import each_row
from tests.unit.front_door.pages.conftest import PageReader, plain, submit

ROW = re.compile(r'<tr id="row-([^"]+)".*?</tr>', re.DOTALL)


def mail(subject: str, text: str = "x", *, to: str = "bob@example.test", **fields) -> EmailMessage:
    made = EmailMessage()
    made["Subject"] = subject
    made["To"] = to
    for name, value in fields.items():
        made[name.replace("_", "-")] = value
    made.set_content(text)
    return made


async def send(pages: PageReader, *messages: EmailMessage) -> None:
    await submit(pages, *(([str(one["To"])], one.as_bytes(policy=SMTP)) for one in messages))


def rows(page: str) -> dict[str, str]:
    """The text of each row by its key."""
    return {found[1]: plain(found[0]) for found in ROW.finditer(page)}


def keys_by_subject(page: str) -> dict[str, str]:
    found = re.findall(r'id="open-([^"]+)"[^>]*>(?:<span.*?</span>)?(.*?)</a>', page)
    return {unescape(subject): key for key, subject in found}


def hidden(page: str, name: str) -> str:
    """The value of a field of the form that asks."""
    found = re.search(rf'<input type="hidden" name="{name}" value="([^"]*)">', page)
    assert found, name
    return unescape(found[1])


def link(page: str, rel: str) -> str:
    """Where the link to a neighbour leads, as a path; "" without it."""
    found = re.search(rf'<a class="tool" rel="{rel}"[^>]*href="([^"]*)"', page)
    return "/messages/" + unescape(found[1]).rpartition("messages/")[2] if found else ""


@each_row("to", ["bob@example.test", "ann@customer.test", "gone+550@customer.test"])
async def test_a_row_shows_name_paperclip_size_and_a_line_of_text(pages, to):
    """Delivered, captured, and bounced: then the reply takes the place of the text."""
    attached = mail(
        f"Order {to}", "Hello Joe,\n\nit has left.\n", to=to, From="Shop \u00e9 <s@x.test>"
    )
    attached.add_attachment(b"a,b\r\n", maintype="text", subtype="csv", filename="a.csv")
    await send(pages, attached, mail(f"Plain {to}", "At noon?", to=to))
    page = await pages.text("/")
    keys = keys_by_subject(page)
    shown = rows(page)
    order, other = shown[keys[f"Order {to}"]], shown[keys[f"Plain {to}"]]
    assert f"Shop \u00e9 {to}" in order
    assert "Order" in order
    assert ("550 5.1.1" if "+550" in to else "Hello Joe, it has left.") in order
    assert ("550 5.1.1" if "+550" in to else "At noon?") in other
    assert re.search(r"\d+ Bytes|\d\.\d kB", order)
    source = {one[1]: one[0] for one in ROW.finditer(page)}
    assert 'aria-label="with attachments"' in source[keys[f"Order {to}"]]
    assert "with attachments" not in source[keys[f"Plain {to}"]]


@each_row(
    "to, envelope, shown",
    [
        ("Bob <BOB@example.test>", ["bob@example.test"], "BOB@example.test"),
        ("Bob <bob@example.test>", ["bob@example.test", "c@x.test"], "bob@example.test +1"),
        ("Team <team@x.test>", ["bob@example.test"], "team@x.test +1"),
        ("undisclosed-recipients:;", ["bob@example.test"], "bob@example.test"),
    ],
)
async def test_a_row_names_who_the_header_says_and_counts_the_others(pages, to, envelope, shown):
    await submit(pages, (envelope, f"To: {to}\r\nSubject: s\r\n\r\nx".encode()))
    found = re.search(r'class="row-to">(.*?)</td>', await pages.text("/"))
    assert found
    assert plain(found[1]) == shown


async def test_what_a_row_shows_of_a_content_is_text_on_one_line(pages):
    html = mail("Styled", From="\u202etset <x@x.test>")
    html.set_content("<style>p{}</style><p>One &lt;b&gt;\u2066two</p><p>three", subtype="html")
    await send(pages, html)
    page = await pages.text("/")
    assert "&lt;b&gt;\ufffdtwo three</span>" in page
    assert "\ufffdtset</bdi>" in page
    assert not set(page) & set("\u202e\u2066")


def test_a_preview_reads_the_beginning_of_a_large_message():
    large = mail("Large", "beginning " + "x" * READ_OCTETS_MAX)
    assert read_preview(MemoryOctets(large.as_bytes(policy=SMTP))).has_attachments is False
    large.add_attachment(b"x", maintype="image", subtype="png", filename="x.png")
    found = read_preview(MemoryOctets(large.as_bytes(policy=SMTP)))
    assert found.text.startswith("beginning xxx")
    assert found.has_attachments


async def test_all_that_match_are_deleted_but_not_what_arrives_after_the_question(pages):
    await send(pages, *(mail(f"Invoice {number}") for number in range(60)), mail("Other"))
    page = await pages.text("/?q=invoice")
    assert "All<span> that match" in page
    assert "All 61<span> that match" in await pages.text("/")
    asked = await pages.get("/messages?action=delete&q=invoice")
    assert "Delete 60 messages?" in asked.text
    assert "And 40 more." in asked.text
    await send(pages, mail("Invoice new"))
    fields = {name: hidden(asked.text, name) for name in ("action", "confirmed", "names", "q")}
    done = await pages.post("/messages", fields, follow_redirects=True)
    assert "60 messages deleted." in done.text
    assert list(keys_by_subject(done.text)) == ["Invoice new"]
    assert set(keys_by_subject(await pages.text("/"))) == {"Invoice new", "Other"}


async def test_of_more_than_the_limit_the_newest_are_asked_about(pages, monkeypatch):
    monkeypatch.setattr(message_list, "NAMES_MAX", 3)
    await send(pages, *(mail(str(number)) for number in range(5)))
    asked = await pages.get("/messages?action=delete")
    assert "Delete 3 messages?" in asked.text
    assert "There may be more" in asked.text
    keys = keys_by_subject(await pages.text("/"))
    assert hidden(asked.text, "names") == "_".join(keys[one] for one in "432")


async def test_a_question_about_nothing_and_about_no_search_are_answered(pages):
    assert "No message matches" in (await pages.get("/messages?action=delete&q=nothing")).text
    assert (await pages.get("/messages?action=delete&q=form:x")).status_code == 400
    assert (await pages.get("/messages?action=steal")).status_code == 400
    assert (await pages.post("/messages", {"action": "steal"})).status_code == 400
    names = "_".join(["0" * 16] * 20_000)
    gone = await pages.post("/messages", {"action": "read", "names": names}, follow_redirects=True)
    assert "0 messages marked as read." in gone.text


async def test_from_message_to_message_of_the_search_and_back(pages, monkeypatch):
    await send(pages, *(mail(f"Invoice {number}") for number in range(5)), mail("Other"))
    keys = keys_by_subject(await pages.text("/"))
    monkeypatch.setattr(message_list, "ROWS", 2)
    first = await pages.text("/?q=invoice")
    older = unescape(re.search(r'<a rel="next" href="\./([^"]*)"', first)[1])
    second = await pages.text("/" + older)
    opened = re.search(r'href="(messages/[^"]*)">(?:<span.*?</span>)?Invoice 2<', second)[1]
    page = await pages.text("/" + unescape(opened))
    assert [link(page, rel).partition("?")[0] for rel in ("prev", "next")] == [
        f"/messages/{keys['Invoice 3']}",
        f"/messages/{keys['Invoice 1']}",
    ]
    back = re.search(r'data-back href="\.\./([^"]*)"', page)[1]
    assert unescape(back) == f"{older}#row-{keys['Invoice 2']}"
    assert keys_by_subject(await pages.text("/" + unescape(back))) == keys_by_subject(second)
    newest = await pages.text(link(await pages.text(link(page, "prev")), "prev"))
    assert ">Invoice 4</h1>" in newest
    assert (link(newest, "prev"), bool(link(newest, "next"))) == ("", True)
    oldest = await pages.text(link(await pages.text(link(page, "next")), "next"))
    assert ">Invoice 0</h1>" in oldest
    assert link(oldest, "next") == ""
    content = re.search(r'<a href="([^"]*)#content"[^>]*>Headers</a>', page)[1]
    assert link(await pages.text("/messages/" + unescape(content).rpartition("/")[2]), "next")


async def test_the_deletion_of_one_is_undone_within_ten_seconds_and_not_later(pages):
    await send(pages, mail("one"), mail("two"))
    key = keys_by_subject(await pages.text("/"))["one"]
    doomed = {"id": key, "action": "delete"}
    asked = await pages.post("/messages", doomed, follow_redirects=True)
    assert list(keys_by_subject(asked.text)) == ["two"]
    assert hidden(asked.text, "id") == key
    assert (await pages.get(f"/messages/{key}")).status_code == 200, "it is there until then"
    undo = {"id": key, "action": "undo"}
    kept = await pages.post("/messages", undo, follow_redirects=True)
    assert "1 message kept." in kept.text
    assert set(keys_by_subject(kept.text)) == {"one", "two"}
    await pages.relay.advance_clock(UNDO_S + 1)
    assert (await pages.get(f"/messages/{key}")).status_code == 200
    shown = (await pages.post("/messages", doomed)).headers["location"]
    await pages.relay.advance_clock(UNDO_S + 1)
    async with asyncio.timeout(120):
        while (await pages.get(f"/messages/{key}")).status_code != 404:
            await asyncio.sleep(0)
    assert "is deleted in" not in await pages.text("/" + shown)
    late = await pages.post("/messages", undo, follow_redirects=True)
    assert "0 messages kept. It was deleted already." in late.text


async def test_a_deletion_waits_no_longer_than_the_relay_runs():
    done = []

    async def remove() -> None:
        done.append(1)

    async def fail() -> None:
        raise OSError("a disk")

    deletions = PendingDeletions(SystemClock())
    for number in range(PENDING_MAX):
        assert deletions.add(f"m{number}", remove if number else fail)
    assert not deletions.add("one more", remove)
    assert deletions.take_back("m1")
    assert not deletions.take_back("m1")
    await deletions.close()
    assert (len(done), list(deletions.names)) == (PENDING_MAX - 2, [])
