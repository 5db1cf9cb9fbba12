"""The page of the simulated internet: what it shows, and what can be changed."""

import html
import re

from relay.development.internet.scenario_file import parse_scenario
from tests.support.tables import each_row
from tests.unit.front_door.pages.conftest import plain

ADD = {"domain": "b.test", "verb": "RCPT", "reply": "550 5.1.1 not here"}


async def version(pages):
    return re.search(r'name="version" value="([^"]+)"', await pages.text("/internet"))[1]


def textarea(text):
    return html.unescape(re.search(r"<textarea[^>]*>\n(.*?)</textarea>", text, re.DOTALL)[1])


def replies(pages):
    return [
        (domain.name, one.verb, one.recipient, one.reply or one.action)
        for domain in pages.relay.internet.state.scenario.domain
        for one in domain.reply
    ]


async def test_a_reply_is_removed_and_a_form_of_an_earlier_scenario_removes_nothing(pages):
    await pages.post("/internet/add", ADD)
    old = await version(pages)
    await pages.post("/internet/add", ADD | {"reply": "552 full"})
    remove = {"domain": "0", "reply": "0"}
    for given, number in ((old, 0), ("", 0), (await version(pages), 7)):
        answer = await pages.post(
            "/internet/remove", remove | {"version": given, "reply": str(number)}
        )
        assert answer.status_code == 409
        assert "nothing was removed" in answer.text
    assert len(replies(pages)) == 2
    answer = await pages.post("/internet/remove", remove | {"version": await version(pages)})
    assert answer.status_code == 303
    assert replies(pages) == [("b.test", "RCPT", "", "550 5.1.1 not here")]


@each_row(
    "fields, expected",
    [
        ({"reply": "no"}, 'found "no", expected a reply such as "550 5.1.1 no such user"'),
        ({"domain": "a b"}, 'found "a b", expected a domain'),
        ({"times": "often"}, 'found "often", expected a whole number'),
        ({"delay": "soon"}, 'found "soon", expected a duration'),
        ({"action": "drop"}, "found both reply and action, expected one of them"),
        ({"action": "explode", "reply": ""}, 'found "explode", expected one of'),
        (
            {"action": "servfail", "reply": ""},
            'found "servfail", expected it only with the verb DNS',
        ),
        ({"recipient": "a@b"}, "expected the part before the @ only"),
        ({"reply": "", "recipient": '"><script>x</script>'}, "found neither reply and action"),
    ],
)
async def test_a_faulty_reply_is_shown_with_what_was_typed_and_changes_nothing(
    pages, fields, expected
):
    answer = await pages.post("/internet/add", ADD | fields)
    assert answer.status_code == 400
    assert expected in plain(answer.text)
    assert replies(pages) == []
    assert "<script>x" not in answer.text
    for name, value in (ADD | fields).items():
        if name in ("domain", "reply", "recipient", "times", "delay") and value:
            shown = re.search(rf'name="{name}" value="([^"]*)"', answer.text)
            assert html.unescape(shown[1]) == value, name


async def test_a_shipped_scenario_takes_the_place_of_the_present_one(pages):
    await pages.post("/internet/add", ADD)
    text = await pages.text("/internet")
    for name, names in pages.relay.internet_overview()["shipped"].items():
        assert f'<option value="{name}">' in text
        assert all(f'<option value="{name}:{one}">' in text for one in names)
    answer = await pages.post("/internet/shipped", {"name": "outlook:S3150"})
    assert answer.status_code == 303
    assert {one[0] for one in replies(pages)} == {"outlook.com"}
    answer = await pages.post("/internet/shipped", {"name": "../../etc/x.toml"})
    assert answer.status_code == 400
    assert "expected PATH.toml or" in plain(answer.text) or "expected" in plain(answer.text)
    assert {one[0] for one in replies(pages)} == {"outlook.com"}


async def test_the_text_of_the_scenario_can_be_edited(pages):
    await pages.post("/internet/shipped", {"name": "gmail"})
    text = textarea(await pages.text("/internet"))
    assert text == pages.relay.scenario_toml
    edited = text.replace('name = "gmail.com"', 'name = "gmail.test"').replace("\n", "\r\n")
    fields = {"toml": edited, "version": await version(pages)}
    assert (await pages.post("/internet/scenario", fields)).status_code == 303
    assert {one[0] for one in replies(pages)} == {"gmail.test"}
    assert "\r" not in pages.relay.scenario_toml
    answer = await pages.post("/internet/scenario", fields)  # of a page that is not the present one
    assert answer.status_code == 409
    assert "nothing was replaced" in answer.text
    assert textarea(answer.text).replace("\n", "\r\n") == edited


async def test_a_faulty_text_stays_in_the_form_and_changes_nothing(pages):
    await pages.post("/internet/add", ADD)
    before = pages.relay.scenario_toml
    bad = '[[domain]]\nname = "a b"\n</textarea><script>x</script>\n[[domain.reply]]\nverb = "RCPTX"\n'
    answer = await pages.post("/internet/scenario", {"toml": bad, "version": await version(pages)})
    assert answer.status_code == 400
    assert textarea(answer.text) == bad
    assert re.search(r"<li>3: found no valid TOML", answer.text)
    bad = '[[domain]]\nname = "a.test"\n[[domain.reply]]\nverb = "RCPTX"\nreply = "550 no"\n'
    answer = await pages.post("/internet/scenario", {"toml": bad, "version": await version(pages)})
    assert "<li>4: domain[0].reply[0].verb: found &#34;RCPTX&#34;, expected one of" in answer.text
    assert 'role="alert" id="scenario-faults"' in answer.text
    assert pages.relay.scenario_toml == before
    assert pages.relay.internet.state.scenario == parse_scenario(before).scenario
