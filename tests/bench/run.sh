#!/bin/sh
# Relay and Postfix side by side in one run, and sendMail; or this tree and a commit.
#   tests/bench/run.sh                            all parts, five rounds
#   tests/bench/run.sh --only small --rounds 3    the arguments are those of side_by_side.py
#   tests/bench/run.sh versions --old COMMIT      the arguments are those of versions.py
#   tests/bench/run.sh nodes                      the arguments are those of nodes.py
# PEERS is the folder of the benchmark kit, RELAY the command to measure, VENV the environment of the bench. Needs root, as Postfix does.
set -eu
top=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
peers=${PEERS:-$top/../shared/peers}
venv=$(realpath -s -- "${VENV:-$top/.venv}")
relay=$(realpath -s -- "${RELAY:-$venv/bin/relay}")

missing() {
    echo "bench: $1" >&2
    exit 69
}
if [ "${1:-}" = versions ]; then
    shift
    set -- "$venv/bin/python" -m tests.bench.versions "$@"
    case "$*" in
        *small* | *fresh* | *large* | *fanout* | *burst*) ;;
        *--workloads*) cd "$top" && exec "$@" ;;  # those of Graph need nothing of the following
    esac
elif [ "${1:-}" = nodes ]; then
    shift
    set -- "$venv/bin/python" -m tests.bench.nodes "$@"
else
    set -- "$venv/bin/python" -m tests.bench.side_by_side --relay "$relay" "$@"
fi
[ -f "$peers/compare.py" ] || missing "no benchmark kit in $peers; set PEERS to its folder"
[ -x "$relay" ] || missing "no relay at $relay; run make bench, or set RELAY"
[ "$(id -u)" -eq 0 ] || missing "Postfix and the fresh file system need root"
[ -x /usr/sbin/postfix ] && [ -x /usr/sbin/smtp-source ] \
    || missing "Postfix is not installed: $peers/install.sh"
peers=$(CDPATH='' cd -- "$peers" && pwd)
cd "$top"
exec "$peers/disk.sh" "$@" --peers "$peers"
