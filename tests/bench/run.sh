#!/bin/sh
# Relay and Postfix side by side in one run, and sendMail.
#   tests/bench/run.sh                            all parts, five rounds
#   tests/bench/run.sh --only small --rounds 3    the arguments are those of side_by_side.py
#   OLD=commit tests/bench/run.sh                 make bench-versions: this tree and a commit
# PEERS is the folder of the benchmark kit, RELAY the command to measure. Needs root, as Postfix does.
set -eu
top=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
peers=${PEERS:-$top/../shared/peers}
relay=$(realpath -s -- "${RELAY:-$top/.venv/bin/relay}")

missing() {
    echo "bench: $1" >&2
    exit 69
}
workloads=${WORKLOADS:-small fresh large fanout burst sendmail keyed}
if [ -n "${OLD:-}" ]; then
    set -- .venv/bin/python -m tests.bench.versions --old "$OLD" --workloads "$workloads" "$@"
    case $workloads in
        sendmail | keyed) cd "$top" && exec "$@" ;;  # they need nothing of the following
    esac
else
    set -- .venv/bin/python -m tests.bench.side_by_side --relay "$relay" "$@"
fi
[ -f "$peers/compare.py" ] || missing "no benchmark kit in $peers; set PEERS to its folder"
[ -x "$relay" ] || missing "no relay at $relay; run make bench, or set RELAY"
[ "$(id -u)" -eq 0 ] || missing "Postfix and the fresh file system need root"
[ -x /usr/sbin/postfix ] && [ -x /usr/sbin/smtp-source ] \
    || missing "Postfix is not installed: $peers/install.sh"
peers=$(CDPATH='' cd -- "$peers" && pwd)
cd "$top"
exec "$peers/disk.sh" "$@" --peers "$peers"
