"""When a message is sent and where its original goes: what request and message ask for, together.

On the path: sendMail and send, before steps 1 and 2.
Holds: a preference beats sendMail's parameter, and that the message's own extended properties.
Fails: ApiError 400 for a preference or a folder that cannot be; nothing is written then.
Standards: RFC 7240 (Prefer); MS-OXOMSG 2.2.3 (PidTagDeleteAfterSubmit, PidTagSentMailEntryId).
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from relay.graph.prefer import preferences
from relay.graph.visit import Visit
from relay.http.errors import ApiError, shown
from relay.mailbox.folders import ROOT_ID
from relay.mailbox.types import Folder, NoSuchItemError, SendOptions, WellKnown
from relay.message.envelope import Client
from relay.message.extended import SENT_MAIL_ENTRY_ID, send_wishes
from relay.message.properties import ExtendedProperty

_OURS = "relay."
_SAVE = "relay.save-to-sent-items"
_FOLDER = "relay.sent-folder"
_WORDS = {"true": True, "false": False}


@dataclass(frozen=True, slots=True)
class Preferred:
    """What the Prefer header asks for; None and "" where it does not. `applied` repeats it."""

    save: bool | None
    folder: str
    applied: str


async def send_options(
    visit: Visit, extended: Sequence[ExtendedProperty], *, save: bool = True
) -> tuple[SendOptions, dict[str, str]]:
    """Return the options and the answer's header fields; `save` is saveToSentItems.

    Raises ApiError 400.
    """
    lines = visit.call.headers.getlist("prefer")
    preferred = read_preferred(preferences(lines)) if lines else Preferred(None, "", "")
    wishes = send_wishes(extended, now_us=visit.door.clock.time_us()) if extended else None
    folder = ""
    if preferred.folder:
        folder = await _sent_folder(visit, (preferred.folder,), where=f"Prefer: {_FOLDER}")
    elif wishes and wishes.sent_folders:
        folder = await _sent_folder(visit, wishes.sent_folders, where=SENT_MAIL_ENTRY_ID)
    if preferred.folder or preferred.save:
        save = True
    elif preferred.save is False or (wishes and wishes.delete_after_submit):
        save = False
    options = SendOptions(
        save_to_sent_items=save,
        sent_folder=folder if save else "",
        deferred_us=wishes.deferred_us if wishes else 0,
        client=Client(visit.call.client_address, account=visit.account.address),
    )
    return options, {"preference-applied": preferred.applied} if preferred.applied else {}


def read_preferred(given: Mapping[str, str]) -> Preferred:
    """Read this relay's own preferences; a name that is none of them is a mistake worth telling.

    Raises ApiError 400.
    """
    for name in given:
        if name.startswith(_OURS) and name not in (_SAVE, _FOLDER):
            raise _bad(f"{shown(name)} is no preference of this relay: {_SAVE} and {_FOLDER} are.")
    said, folder = given.get(_SAVE), given.get(_FOLDER)
    save = None if said is None else _WORDS.get(said.lower())
    if said is not None and save is None:
        raise _bad(f"{_SAVE}: found {shown(said)}, expected true or false.")
    if folder == "":
        raise _bad(f"{_FOLDER}: expected a folder's id or well-known name.")
    if folder and save is False:
        raise _bad(f"{_FOLDER} asks for what {_SAVE}=false forbids.")
    told = [] if save is None else [f"{_SAVE}={str(save).lower()}"]
    if folder:
        told.append(f'{_FOLDER}="{folder}"' if not folder.isalnum() else f"{_FOLDER}={folder}")
    return Preferred(save, folder or "", ", ".join(told))


async def _sent_folder(visit: Visit, spellings: Sequence[str], *, where: str) -> str:
    """Return the id of the folder, as Sent Items' "" for itself."""
    folder: Folder | None = None
    for one in spellings:
        with suppress(NoSuchItemError):
            folder = await visit.door.store.get_folder(visit.mailbox, one)
            break
    if folder is None:
        raise _bad_folder(where, f"there is no folder {shown(spellings[0])} in this mailbox.")
    if not folder.may_keep_sent or folder.id == ROOT_ID:
        raise _bad_folder(where, f"{folder.display_name} cannot hold what has been sent.")
    return "" if folder.well_known is WellKnown.SENT_ITEMS else folder.id


def _bad(message: str) -> ApiError:
    return ApiError(400, "ErrorInvalidRequest", f"Prefer: {message}")


def _bad_folder(where: str, message: str) -> ApiError:
    return ApiError(400, "ErrorInvalidRequest", f"{where}: {message}")
