"""A file of a mailbox as the message its callers see, and a new draft as the file it becomes.

On the path: step 1 composes drafts here; every reading answer is loaded here.
Holds: a draft's id, Message-ID and Date are given once and kept through every generation.
Fails: never; who reads the files deals with those that are gone.
Standards: Graph's message; Maildir flags.
"""

import hashlib
import os
from dataclasses import dataclass, replace

from relay.journal.storelog import SubmissionFacts
from relay.mailbox.index import Located
from relay.mailbox.index.located import is_draft_file, received_at_us
from relay.mailbox.names import FLAGGED, SEEN, message_stem
from relay.mailbox.types import StoredAttachment, StoredMessage
from relay.message.conversation import new_index, thread_of
from relay.message.draft import (
    DraftOrigin,
    read_attachments,
    split_private,
    write_draft,
    write_mime_draft,
)
from relay.message.fields import is_message_id
from relay.message.headread import header_of
from relay.message.mimeread import read_message, read_mime, read_mime_attachments
from relay.message.properties import MessageProperties, Person


@dataclass(frozen=True, slots=True)
class Identity:
    """What makes a draft the same message from one generation to the next; times in µs."""

    account: str
    message_id: str
    hostname: str
    created_us: int
    modified_us: int
    generation: int = 1
    internet_message_id: str = ""
    save_to_sent_items: bool = True
    sent_folder: str = ""


@dataclass(frozen=True, slots=True)
class ComposedDraft:
    """A draft's file: its base name without `,S=`, its name without flags, its bytes.

    `properties` are those it was written from, None for MIME.
    """

    stem: str
    base: str
    raw: bytes
    account: str
    properties: MessageProperties | None


def compose(content: MessageProperties | bytes, identity: Identity) -> ComposedDraft:
    """Make the file of a draft from properties or from MIME."""
    stem = message_stem(
        identity.message_id,
        identity.generation,
        time_us=identity.created_us,
        hostname=identity.hostname,
    )
    wanted = identity.internet_message_id
    if isinstance(content, MessageProperties):
        wanted = content.internet_message_id or wanted
    origin = DraftOrigin(
        account=identity.account,
        base_name=stem,
        message_id=wanted
        if is_message_id(wanted)
        else f"<{identity.message_id}@{identity.hostname}>",
        created_us=identity.created_us,
        modified_us=identity.modified_us,
        save_to_sent_items=identity.save_to_sent_items,
        sent_folder=identity.sent_folder,
    )
    properties = None
    if isinstance(content, MessageProperties):
        properties = _owned(content, origin)
        raw = write_draft(properties, origin)
    else:
        raw = write_mime_draft(content, origin)
    return ComposedDraft(stem, f"{stem},S={len(raw)}", raw, identity.account, properties)


def facts_of(draft: ComposedDraft, submission_id: str) -> SubmissionFacts:
    """Return what the log tells of a draft that was just composed."""
    if draft.properties is None:
        return submission_facts(draft.raw, submission_id)
    return _facts(draft.properties, submission_id, account=draft.account, message_id="")


def submission_facts(raw: bytes, submission_id: str) -> SubmissionFacts:
    """Return what the log tells of a draft that is submitted."""
    block, length = split_private(raw)
    if block is not None and block.properties is not None:
        properties = block.properties
    else:
        properties = read_mime(header_of(raw[length:])).properties
    account = block.origin.account if block else ""
    message_id = block.origin.message_id if block else ""
    return _facts(properties, submission_id, account=account, message_id=message_id)


def _facts(
    properties: MessageProperties, submission_id: str, *, account: str, message_id: str
) -> SubmissionFacts:
    """`message_id` counts where the message has none."""
    everybody = (*properties.to, *properties.cc, *properties.bcc)
    return SubmissionFacts(
        submission_id=submission_id,
        graph_id=submission_id.partition(".")[0],
        account=account,
        sender=properties.from_.address if properties.from_ else account,
        message_id=properties.internet_message_id or message_id,
        subject=properties.subject,
        recipients=tuple(dict.fromkeys(person.address for person in everybody)),
    )


def load(located: Located, raw: bytes, *, touched_us: int) -> StoredMessage:
    """Return a file as a message; `touched_us` is when it was last written."""
    block, _ = split_private(raw)
    message = read_message(raw)
    created_us = block.origin.created_us if block else touched_us
    properties = message.properties
    if block and not properties.internet_message_id:
        properties = replace(properties, internet_message_id=block.origin.message_id)
    flags = located.name.flags
    place = f"{located.folder.id}/{located.name.base}:{''.join(sorted(flags))}"
    change_key = hashlib.sha256(os.fsencode(place))
    attachments = tuple(
        StoredAttachment(
            str(number),
            one.name,
            one.content_type,
            one.size,
            one.inline,
            content_id=one.content_id,
            item=one.item,
        )
        for number, one in enumerate(message.attachments)
    )
    return StoredMessage(
        id=located.message_id,
        folder=located.folder,
        path=located.path,
        properties=properties,
        attachments=attachments,
        is_draft=is_draft(located),
        is_read=SEEN in flags,
        flagged=FLAGGED in flags,
        size=len(raw),
        created_us=created_us,
        modified_us=block.origin.modified_us if block else touched_us,
        sent_us=message.date_us or (block.origin.modified_us if block else touched_us),
        received_us=located.received_us or received_at_us(located.message_id, touched_us),
        change_key=change_key.hexdigest()[:16],
        is_mime=block is None or block.is_mime,
    )


def is_draft(located: Located) -> bool:
    """Whether a file is a draft: by its flag, or because a mail client keeps it in Drafts."""
    return is_draft_file(located.name.flags, located.folder)


def next_generation(
    located: Located, raw: bytes, identity: Identity, *, change: MessageProperties | None
) -> ComposedDraft:
    """Compose a draft anew: with `change`, keeping attachments; without, as it is.

    `identity` counts for what the old file does not tell.
    """
    block, length = split_private(raw)
    content: MessageProperties | bytes
    if block is None or block.is_mime:
        content = raw[length:]
        if change is not None:
            attachments = change.attachments or read_mime_attachments(content)
            content = replace(change, attachments=attachments)
    else:
        change = change or read_message(raw).properties
        content = replace(change, attachments=change.attachments or read_attachments(raw))
    told = block.origin.message_id if block else ""
    identity = replace(
        identity,
        message_id=located.message_id,
        generation=located.generation + 1,
        created_us=block.origin.created_us if block else identity.created_us,
        internet_message_id=told or read_message(raw).properties.internet_message_id,
    )
    return compose(content, identity)


def _owned(properties: MessageProperties, origin: DraftOrigin) -> MessageProperties:
    """Fill in the mailbox's owner where nobody is named."""
    from_ = properties.from_ or properties.sender or Person(origin.account)
    return replace(
        properties,
        from_=from_,
        sender=properties.sender or from_,
        internet_message_id=origin.message_id,
        conversation_index=properties.conversation_index or _new_index(properties, origin),
    )


def _new_index(properties: MessageProperties, origin: DraftOrigin) -> str:
    thread = thread_of(
        origin.message_id, in_reply_to=properties.in_reply_to, references=properties.references
    )
    return new_index(thread, time_us=origin.created_us)
