"""`relay storage verify`: whether the store's files hold together, and mending what follows from
others of them.

On the path: beside it; an operator asks, whether the relay runs or not.
Touches: mailboxes, their indexes, and `.submissions/`; never the contents of a message.
Promises: no mail is deleted: what nothing can be done with is put aside, and where is said.
"""

from relay.mailbox.verify.findings import StoreCounts, StoreFinding, StoreFindingKind
from relay.mailbox.verify.verifier import Verifier, VerifierDependencies

__all__ = ["StoreCounts", "StoreFinding", "StoreFindingKind", "Verifier", "VerifierDependencies"]
