"""outlook/masterCategories: created, coloured, deleted, and kept in the mailbox's settings."""

from relay.front_door.graph.users import CATEGORIES_MAX
from tests.support.graph_fakes import OnDisk, refused

CATEGORIES = "/outlook/masterCategories"


async def test_a_category_is_created_coloured_and_deleted(on_disk: OnDisk) -> None:
    http = on_disk.http
    assert (await http.get(CATEGORIES)).json()["value"] == []
    answer = await http.post(CATEGORIES, json={"displayName": "Größe", "color": "Preset3"})
    made = answer.json()
    assert (answer.status_code, made["displayName"], made["color"]) == (201, "Größe", "preset3")
    path = f"{CATEGORIES}/{made['id']}"
    assert answer.headers["location"].endswith(path)
    changed = (await http.patch(path, json={"color": None, "displayName": "Größe"})).json()
    assert (changed["id"], changed["color"]) == (made["id"], "none")
    assert (await http.get(f"{path}?$select=color")).json().keys() >= {"id", "color"}
    await http.post(CATEGORIES, json={"displayName": "Red"})
    listed = (await http.get(CATEGORIES)).json()["value"]
    assert [one["displayName"] for one in listed] == ["Größe", "Red"]
    page = (await http.get(f"{CATEGORIES}?$top=1")).json()
    rest = (await http.get(page["@odata.nextLink"])).json()
    assert [page["value"], rest["value"]] == [listed[:1], listed[1:]]
    assert (await http.get(f"{CATEGORIES}?$top=9999")).json()["value"] == listed
    assert (await http.delete(path)).status_code == 204
    assert [one["displayName"] for one in (await http.get(CATEGORIES)).json()["value"]] == ["Red"]
    refused(await http.get(path), 404, "ErrorItemNotFound")


async def test_the_other_settings_stay(on_disk: OnDisk) -> None:
    http = on_disk.http
    await http.patch("/mailboxSettings", json={"timeZone": "Europe/Berlin"})
    await http.post(CATEGORIES, json={"displayName": "Red"})
    assert (await http.get("/mailboxSettings")).json()["timeZone"] == "Europe/Berlin"
    await http.patch("/mailboxSettings", json={"timeZone": "UTC"})
    assert len((await http.get(CATEGORIES)).json()["value"]) == 1


async def test_there_is_a_maximum(on_disk: OnDisk) -> None:
    for number in range(CATEGORIES_MAX):
        name = f"{number}".ljust(255, "ß")
        assert (await on_disk.http.post(CATEGORIES, json={"displayName": name})).is_success
    answer = await on_disk.http.post(CATEGORIES, json={"displayName": "one more"})
    assert str(CATEGORIES_MAX) in refused(answer, 400, "ErrorInvalidRequest")
    assert len((await on_disk.http.get(CATEGORIES)).json()["value"]) == CATEGORIES_MAX


async def test_blanks_at_the_ends_of_a_name_are_left_out(on_disk: OnDisk) -> None:
    """A category of a message and the one of the list that has its colour have the same name."""
    made = await on_disk.http.post(CATEGORIES, json={"displayName": " Red\u00a0"})
    assert made.json()["displayName"] == "Red"
    draft = {"subject": "s", "categories": [" Red ", "", " ", None]}
    message = (await on_disk.http.post("/messages", json=draft)).json()
    assert message["categories"] == ["Red"]
