#!/bin/sh
# Podman where containers do not run otherwise, such as in a container, as root: podman.sh ARGUMENTS OF PODMAN
# A container has no control group, and a network with loopback alone, unless `--network container:NAME` joins another's:
# -p does nothing. Where no registry answers, the base image is made of Debian's packages. Images and volumes are kept in
# $RELAY_PODMAN, else in /var/tmp/relay-podman. Needs podman, buildah, crun and mmdebstrap of Debian.
set -eu
base=docker.io/library/python:3.13-slim
certificates=/etc/ssl/certs/ca-certificates.crt
[ "$(id -u)" = 0 ] || { echo "podman.sh: only root can do this" >&2; exit 77; }
export STATE="${RELAY_PODMAN:-/var/tmp/relay-podman}"
export CONTAINERS_CONF="$STATE/containers.conf"
mkdir -p "$STATE"
cat >"$CONTAINERS_CONF" <<END
[containers]
cgroups = "disabled"
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
netns = "none"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
END

# It sees the control groups of version 2 alone.
podman_here() {
    unshare --mount sh -ec '
        umount -R /sys/fs/cgroup 2>/dev/null || :
        mount -t cgroup2 none /sys/fs/cgroup 2>/dev/null || mount -t tmpfs none /sys/fs/cgroup
        exec podman --root "$STATE/root" --runroot "$STATE/run" "$@"' podman "$@"
}

# With the index of packages, and the authorities, that this machine has.
build() {
    [ ! -e /etc/pip.conf ] || set -- --volume /etc/pip.conf:/etc/pip.conf:ro "$@"
    podman_here build --isolation chroot --network host --volume "$certificates:$certificates:ro" --format docker "$@"
}

make_base() (
    podman_here image exists "$base" || podman_here pull --quiet "$base" 2>/dev/null && exit
    context=$(mktemp -d)
    trap 'rm -rf "$context"' EXIT
    mmdebstrap --quiet --variant=minbase --include=ca-certificates,python3-venv trixie "$context/root.tar"
    printf '%s\n' "FROM scratch" "ADD root.tar /" "RUN ln -s /usr/bin/python3 /usr/local/bin/python" >"$context/Containerfile"
    build --quiet --tag "$base" "$context"
)

case ${1:-} in
    build) shift && make_base >&2 && build "$@" ;;
    # with Docker, a read-only container has no folder to write
    run) shift && make_base >&2 && podman_here run --read-only-tmpfs=false "$@" ;;
    *) podman_here "$@" ;;
esac
