"""The `relay` command: options and output of each verb, usually one module for a verb.

What a verb does is in relay.operation.commands. Exit codes are those of sysexits(3). Facts are
printed to stdout, everything else to stderr. The user never gets a traceback, not even after Ctrl-C
while modules are loaded.

What verbs share:

- `root`: the list of verbs, and which module is loaded for one
- `options`: --config, --json, --role; which configuration file is used without --config
- `option_types`: how the value of an option is read, and what a wrong one is answered
- `relay_client`: what verbs that ask the running relay take from relay.toml, and which faults there
  end them
- `output`: JSON and text; the lines of journeys, recipients, and what rules compared and would do;
  control characters
- `errors`: which exception has which exit code, and the line on stderr

A service:

- `serve`: `relay serve`
- `config`: `relay config show | diff`
- `control`: orders to the running relay: `relay reload`, `relay webhook list | test | replay`
- `account`: `relay account`: add, list, remove, token, password, unlock
- `oauth`: `relay oauth login | test`: device code, pasted address; the account of a token
- `dns`: `relay dns`, `relay dkim keygen | show`
- `policy`: `relay policy check | test | try`
- `suppressed`: `relay suppressed list | add | remove`
- `backup`: `relay backup`, `relay restore`, `relay check`
- `storage`: `relay storage verify | backup | prune | adopt`; the text of findings

Messages:

- `send`: `relay send`
- `sendmail`: `relay sendmail` and `relay mailq`, the program names sendmail and mailq
- `trace`: `relay trace` and `relay wait`; why a wait has timed out; `relay log`; the line of a
  message
- `show`: `relay show`
- `stats`: `relay stats`
- `explain`: `relay explain`
- `queue`: `relay queue list | show | stats | retry | hold | release | cancel | reroute`; the text
  of entries and statistics; `relay pause` and `relay resume`

Elsewhere: `relay dev`, `relay clock` and `relay reset`: `relay/development/verbs`.
"""

import gc
import os
import signal
import sys

_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
_TERMINATED = 143  # 128 + SIGTERM
_COLLECT_AFTER = 50_000  # objects: importing modules creates many and little garbage


def main() -> None:
    """Run the command line and exit."""
    if os.getpid() == 1:  # of a container: SIGTERM without a handler is ignored (pid_namespaces(7))
        signal.signal(signal.SIGTERM, lambda *_: os._exit(_TERMINATED))
    gc.set_threshold(_COLLECT_AFTER)
    try:
        from relay.operation.cli.root import run  # noqa: PLC0415 - inside the try

        code = run()
    except KeyboardInterrupt:
        code = _INTERRUPTED
    sys.exit(code)


__all__ = ["main"]
