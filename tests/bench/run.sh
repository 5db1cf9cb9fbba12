#!/bin/sh
# Relay and Postfix side by side in one run, and whether a sync stands before each 250.
#   tests/bench/run.sh                            small, large and fresh, three rounds each
#   tests/bench/run.sh --workload small --rounds 5        the arguments are those of compare.py
#   SYNC_ONLY=1 tests/bench/run.sh                only the look at syncs
#   OLD=commit tests/bench/run.sh                 make bench-versions: this tree and a commit
# PEERS is the folder of the benchmark kit, RELAY the command to measure. Needs root, as Postfix does.
set -eu
top=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
peers=${PEERS:-$top/../shared/peers}
relay=${RELAY:-$top/.venv/bin/relay}

missing() {
    echo "bench: $1" >&2
    exit 69
}
workloads=${WORKLOADS:-small fresh large fanout burst sendmail}
if [ -n "${OLD:-}" ]; then
    set -- .venv/bin/python -m tests.bench.versions --old "$OLD" --workloads "$workloads" "$@"
    [ "$workloads" != sendmail ] || { cd "$top" && exec "$@"; }  # it needs nothing of the following
fi
[ -f "$peers/compare.py" ] || missing "no benchmark kit in $peers; set PEERS to its folder"
[ -x "$relay" ] || missing "no relay at $relay; run make bench, or set RELAY"
[ "$(id -u)" -eq 0 ] || missing "Postfix and the fresh file system need root"
[ -x /usr/sbin/postfix ] && [ -x /usr/sbin/smtp-source ] \
    || missing "Postfix is not installed: $peers/install.sh"
peers=$(CDPATH='' cd -- "$peers" && pwd)
[ -z "${OLD:-}" ] || { cd "$top" && exec "$peers/disk.sh" "$@" --peers "$peers"; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 143' TERM INT
(umask 077 && : > "$work/accounts.toml")
sed -e "s|{accounts}|$work/accounts.toml|" -e "s|{policies}|$top/policies|" \
    "$top/tests/bench/relay.toml" > "$work/relay.toml"

if [ -z "${SYNC_ONLY:-}" ]; then
    [ $# -gt 0 ] || set -- --workload small --workload large --workload fresh --rounds 3
    "$peers/disk.sh" python3 "$peers/compare.py" --start "$relay serve --config {config}" \
        --template "$work/relay.toml" "$@"
fi
python3 "$top/tests/bench/sync_check.py" "$relay" "$work/relay.toml" || [ $? -eq 69 ]
