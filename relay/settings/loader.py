"""Read relay.toml into the frozen tree.

On the path: the command line loads once at start and hands the tree to app.
Holds: paths in the tree are absolute, relative ones being meant from the file's folder.
Fails: SettingsError with every fault of the file at once.
Standards: TOML 1.0.
"""

from collections.abc import Mapping
from pathlib import Path

from relay.settings.checks import check_together
from relay.settings.document import read_document
from relay.settings.faults import SettingsError, dotted, shown
from relay.settings.reader import Reader
from relay.settings.tree import Settings


def load(path: Path, environ: Mapping[str, str]) -> Settings:
    """Return the settings in the file `path`; `environ` is what ${env:NAME} may name.

    Raises SettingsError.
    """
    document = read_document(path)
    reader = Reader(document, base=path.absolute().parent, environ=environ)
    values = reader.fields(Settings, document.table, ())
    faults = list(reader.faults)
    for place, expected in check_together(reader.read, values.get("state_dir")):
        inside = (f"{dotted(place)}[", f"{dotted(place)}.")
        if any(fault.key.startswith(inside) for fault in reader.faults):
            continue  # what is wrong inside has been told, and is why it does not fit
        message = f"found {shown(document.value(place))}, expected {expected}"
        faults.append(document.fault(place, message))
    if faults:
        raise SettingsError(faults)
    return Settings(**values)
