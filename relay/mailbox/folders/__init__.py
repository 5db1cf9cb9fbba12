"""The folders of a mailbox: directories of a Maildir++, with ids that outlive their names.

On the path: every module of the store asks where a folder is; graph's mailFolders change them.
Holds: what other programs make is a folder as well, and what they keep beside it stays right.
Fails: NoSuchItemError, FolderError and its children; OSError when the disk refuses.
Standards: Maildir++; Graph's mailFolder; docs/design.md 3.
"""

from relay.mailbox.folders.directories import (
    ROOT_ID,
    Folders,
    find_folder,
    is_deleted,
    list_folders,
    marked_id,
    well_known_path,
    write_id,
)

__all__ = [
    "ROOT_ID",
    "Folders",
    "find_folder",
    "is_deleted",
    "list_folders",
    "marked_id",
    "well_known_path",
    "write_id",
]
