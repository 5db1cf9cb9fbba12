"""Relay: a self-hosted mail relay with the shape of Microsoft Graph's send-mail process.

The packages here are the wings. Each imports only from those below it:

- `testing`: the test kit: a relay inside a test
- `development`: `relay dev`, and the simulated internet around it
- `operation`: a relay is put together, started, checked, commanded
- `front_door`: step 1: who comes in by HTTP: Graph, pages, sign-in; and who is notified
- `submission`: steps 2, 3 and 4: what a 202 promised, until it is accepted, also after a crash
- `delivery`: steps 6 and 7: to mailboxes and by SMTP to hosts; who gets a report
- `transport`: step 5: SMTP sessions, rules, routes, signatures, what was refused
- `store`: what an fsync stands behind: mailboxes, the spool, journeys
- `formats`: messages as octets: MIME, headers, the form of reports
- `base`: values of mail, settings, accounts, the log; time, files, sockets, when load refuses mail

A wing's `__init__.py` says what comes in, what goes out, and what its rooms or modules are for.
docs/flow.md follows one message through the wings, docs/design.md gives the reasons.
"""

from pathlib import Path

__version__ = "0.7.0"


def commit() -> str:
    """Return the commit that this was built from, as hatch_build.py wrote it, or ""."""
    file = Path(__file__).parent / "_shipped/commit"
    return file.read_text().strip() if file.exists() else ""
