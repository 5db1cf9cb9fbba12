"""The AttachmentStore of api.py: attachments and uploads as the front door knows them.

On the path: graph's attachments and upload sessions end here.
Holds: one hop to a thread a call; a request that is cut off leaves its range as if it never came.
Fails: StoreError's children.
Standards: none.
"""

import asyncio
import secrets

from relay.mailbox.attachments import uploads
from relay.mailbox.attachments.stored import Attachments
from relay.mailbox.drafts import Drafts
from relay.mailbox.equipment import Equipment
from relay.mailbox.threads import Run
from relay.mailbox.types import NewUpload, Opened, Upload
from relay.message.properties import Attachment
from relay.mime.draft import kept_attachment
from relay.mime.mimeread import AttachmentFacts


class UploadRange:
    """An api.UploadRange."""

    def __init__(self, taken: uploads.UploadRange, run: Run) -> None:
        self._taken = taken
        self._run = run
        self._is_finishing = False

    async def write(self, octets: bytes) -> None:
        """See api.UploadRange."""
        await self._run(self._taken.write, octets)

    async def finish(self) -> Upload:
        """See api.UploadRange."""
        self._is_finishing = True  # from here on it goes on, whoever waits
        return await self._run(self._taken.finish)

    def abort(self) -> None:
        """See api.UploadRange."""
        if not self._is_finishing:
            asyncio.get_running_loop().run_in_executor(None, self._taken.abort)


class FileAttachments:
    """An api.AttachmentStore."""

    def __init__(self, equipment: Equipment, drafts: Drafts, *, run: Run) -> None:
        self._attachments = Attachments(equipment, drafts)
        directory = equipment.notes.ready.with_name("uploads")
        self._uploads = uploads.Uploads(directory, equipment, self._attachments)
        self._run = run
        self._new_id = equipment.ids.new

    async def opened(self, account: str, message_id: str, *, folder_id: str = "") -> Opened:
        """See api.AttachmentStore."""
        return await self._run(self._attachments.opened, account, message_id, folder_id)

    async def add(
        self, account: str, message_id: str, attachment: Attachment, *, limit_bytes: int
    ) -> str:
        """See api.AttachmentStore."""
        identity = self._new_id()

        def added() -> None:
            new = kept_attachment(attachment, identity=identity)
            self._attachments.add(account, message_id, new, limit_bytes=limit_bytes)

        await self._run(added)
        return identity

    async def remove(self, account: str, message_id: str, attachment_id: str) -> None:
        """See api.AttachmentStore."""
        await self._run(self._attachments.remove, account, message_id, attachment_id)

    async def create_upload(
        self, account: str, message_id: str, wanted: AttachmentFacts, *, limit_bytes: int
    ) -> NewUpload:
        """See api.AttachmentStore."""
        token = secrets.token_urlsafe()
        upload = await self._run(
            self._uploads.create, account, message_id, wanted, token=token, limit_bytes=limit_bytes
        )
        return NewUpload(token, upload)

    async def find_upload(self, token: str) -> Upload:
        """See api.AttachmentStore."""
        return await self._run(self._uploads.find, token)

    async def upload_range(self, token: str, start: int) -> UploadRange:
        """See api.AttachmentStore."""
        return UploadRange(await self._run(self._uploads.begin_range, token, start), self._run)

    async def attach_upload(self, token: str, *, limit_bytes: int) -> Upload:
        """See api.AttachmentStore."""
        return await self._run(self._uploads.attach, token, limit_bytes=limit_bytes)

    async def remove_upload(self, token: str) -> None:
        """See api.AttachmentStore."""
        await self._run(self._uploads.remove, token)

    async def remove_expired(self) -> None:
        """Remove uploads whose time is over: at the front door's start, and from time to time."""
        await self._run(self._uploads.remove_expired)
