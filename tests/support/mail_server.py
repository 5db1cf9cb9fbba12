"""A mail server of another project in a folder of its own, which goes with it."""

import mailbox
import shutil
import tempfile
from pathlib import Path
from typing import Self


class MailServer:
    """Started for a block, with its Maildirs in the folder."""

    _folder = Path()

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix=f"relay-{type(self).__name__.lower()}-"))
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def mail(self, person: str) -> list[mailbox.MaildirMessage]:
        """What came for somebody."""
        home = self._folder / "mail" / person
        is_there = all((home / part).is_dir() for part in ("cur", "new"))
        return list(mailbox.Maildir(home, create=False)) if is_there else []

    def _start(self) -> None:
        raise NotImplementedError

    def _stop(self) -> None:
        raise NotImplementedError
