#!/usr/bin/env bash
# make deb: dist/graph-relay{,-mta}_*.deb, two for each release of Debian, of the commit that is checked out.
# Two builds of a commit on one release of Debian are equal, octet by octet: all files have the time of
# the commit, wheels are chosen by their hashes, and byte code is made where the package is installed.
# Runs as any user, on either release: no Python of the other one is needed. The argument is a Python with pip.
set -euo pipefail
umask 022
export LC_ALL=C TZ=UTC PYTHONDONTWRITEBYTECODE=1 DPKG_DEB_THREADS_MAX=1
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=$(realpath -s "$1")
releases=(12=3.11 13=3.13)
architecture=$(dpkg --print-architecture)
case "$architecture" in
    amd64) machine=x86_64 ;;
    arm64) machine=aarch64 ;;
    *) echo "requirements.txt has no wheels for $architecture" >&2 && exit 69 ;;
esac
commit=$(git rev-parse --short=12 HEAD) || { echo "make deb builds a commit of a Git checkout" >&2 && exit 66; }
[ -z "$(git status --porcelain)" ] || echo "what is not committed is not in the packages" >&2
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export RELAY_COMMIT=$commit SOURCE_DATE_EPOCH
work=$(mktemp -d)
trap 'rm -rf "$work" dist/.part' EXIT
rm -rf dist/.part
mkdir -p "$work/source" dist/.part
git archive HEAD | tar -x -C "$work/source"
# 0.3.0.dev0 comes before 0.3.0, and a later commit after an earlier one: deb-version(7).
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$work/source/pyproject.toml" |
    sed -E 's/\.?(a|b|rc|dev)([0-9]+)/~\1\2/g')+git$(date -d "@$SOURCE_DATE_EPOCH" +%Y%m%d%H%M%S).$commit

wheels() {
    "$python" -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps --no-compile \
        --only-binary :all: --requirement "$work/source/requirements.txt" --target "$@"
}

package() {
    local release=$1 number=$2 root=$work/$1 site files=$work/source/packaging/debian
    local opt=$root/opt/relay share=$root/usr/share/doc/graph-relay
    site=$opt/lib/python$number/site-packages
    mkdir -p "$opt/bin" "$site" "$share/examples" "$root/DEBIAN" "$root/usr/bin"
    wheels "$site" --implementation cp --python-version "$number" --platform "manylinux_2_28_$machine" \
        --platform "manylinux_2_27_$machine" --platform "manylinux_2_17_$machine"
    for wheel in "$work"/*.whl; do "$python" -m zipfile -e "$wheel" "$site"; done
    # tools and tests of libraries, of no use here
    rm -rf "$site"/bin "$site"/*/tests "$site/apsw/sqlite_extra_binaries" "$site/aiosmtpd/docs" "$site"/*.data
    # Debian removes these from its own packages: they name the build, and are of use to pip alone.
    find "$site" \( -path '*.dist-info/RECORD' -o -path '*.dist-info/REQUESTED' \) -delete
    printf 'home = /usr/bin\ninclude-system-site-packages = false\n' >"$opt/pyvenv.cfg"
    ln -s "/usr/bin/python$number" "$opt/bin/python"
    ln -s python "$opt/bin/python3"
    install -m 0755 "$files/relay" "$opt/bin/relay"
    ln -s /opt/relay/bin/relay "$root/usr/bin/relay"
    cd "$work/source"
    install -D -m 0644 systemd/relay.sysusers.conf "$root/usr/lib/sysusers.d/relay.conf"
    install -D -m 0644 systemd/relay.tmpfiles.conf "$root/usr/lib/tmpfiles.d/relay.conf"
    install -D -m 0644 -t "$root/usr/lib/systemd/system" systemd/relay.service systemd/relay@.socket
    install -m 0644 -t "$share/examples" systemd/relay-sockets.conf docs/examples/alerts.yaml
    install -m 0755 -t "$share/examples" docs/examples/{to_mbox,send_mailbox}.py
    install -D -m 0644 -t "$share/examples/fail2ban" docs/examples/fail2ban/{filter,jail}.conf
    install -m 0644 "$files/copyright" "$share"
    install -D -m 0644 "$files/lintian-overrides" "$root/usr/share/lintian/overrides/graph-relay"
    gzip -9n <CHANGELOG.md >"$share/CHANGELOG.md.gz"
    printf 'graph-relay (%s) unstable; urgency=medium\n\n  * See CHANGELOG.md.gz.\n\n -- %s  %s\n' "$version+deb$release" \
        "$(sed -n 's/^Maintainer: //p' "$files/control")" "$(date -R -d "@$SOURCE_DATE_EPOCH")" |
        gzip -9n >"$share/changelog.gz"
    gzip -9n <"$files/NEWS" >"$share/NEWS.Debian.gz"
    cp -r "$work/share/." "$root/usr/share"
    gzip -9n "$root"/usr/share/man/man?/*
    install -m 0644 -t "$share" conf/{relay,providers}.toml
    install -D -m 0644 "$files/relay.toml" "$root/usr/share/graph-relay/relay.toml"
    install -D -m 0644 -t "$root/usr/share/graph-relay/policies" policies/*.toml
    install -D -m 0644 -t "$root/usr/share/graph-relay/policies/groups" policies/groups/*.txt
    install -D -m 0644 "$files/needrestart.conf" "$root/etc/needrestart/conf.d/graph-relay.conf"
    echo /etc/needrestart/conf.d/graph-relay.conf >"$root/DEBIAN/conffiles"
    install -d -m 0750 "$root"/etc/relay/{,policies/{,groups}}
    install -m 0755 -t "$root/DEBIAN" "$files"/{preinst,postinst,prerm,postrm}
    install -m 0644 -t "$root/DEBIAN" "$files/templates"
    cd - >/dev/null
    pack "$release" "$number" "$root" "$files/control"
}

# The names of the mail transport agent, for a machine where Relay is it.
mta() {
    local release=$1 number=$2 root=$work/$1-mta files=$work/source/packaging/debian
    mkdir -p "$root"/{DEBIAN,usr/{bin,lib,sbin,share/{doc,man/man1}}}
    ln -s /opt/relay/bin/relay "$root/usr/sbin/sendmail"
    ln -s /opt/relay/bin/relay "$root/usr/bin/mailq"
    ln -s ../sbin/sendmail "$root/usr/lib/sendmail"
    ln -s relay-sendmail.1.gz "$root/usr/share/man/man1/sendmail.1.gz"
    ln -s relay-mailq.1.gz "$root/usr/share/man/man1/mailq.1.gz"
    ln -s graph-relay "$root/usr/share/doc/graph-relay-mta"
    install -m 0755 "$files/newaliases" "$root/usr/bin"
    install -m 0755 "$files/mta.preinst" "$root/DEBIAN/preinst"
    install -m 0755 "$files/mta.postinst" "$root/DEBIAN/postinst"
    pack "$release" "$number" "$root" "$files/mta.control"
}

pack() {
    local release=$1 number=$2 root=$3 control=$4
    sed -e "s/@VERSION@/$version+deb$release/" -e "s/@ARCHITECTURE@/$architecture/" -e "s/@PYTHON@/$number/" \
        -e "s/@SIZE@/$(du -sk --apparent-size --exclude=DEBIAN "$root" | cut -f1)/" "$control" >"$root/DEBIAN/control"
    find "$root" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
    # a file of dist is whole, also where the disk fills
    dpkg-deb --root-owner-group -Zxz -z3 --build "$root" dist/.part
    mv dist/.part/* dist
}

wheels "$work/tools" --requirement "$work/source/requirements-build.txt"
# libraries that have no wheels: pure Python, built without a network
PYTHONPATH=$work/tools "$python" -m pip download --quiet --disable-pip-version-check --require-hashes --no-deps \
    --no-build-isolation --requirement "$work/source/requirements-archives.txt" --dest "$work/archives"
PYTHONPATH=$work/tools "$python" -m pip wheel --quiet --disable-pip-version-check --no-deps --no-index \
    --no-build-isolation --wheel-dir "$work" "$work"/archives/*.tar.gz
(cd "$work/source" && PYTHONPATH=$work/tools "$python" -m hatchling build -t wheel -d "$work" >/dev/null)
PYTHONPATH=$work/tools "$python" "$work/source/packaging/manual.py" "$work/share"
for each in "${releases[@]}"; do
    package "${each%=*}" "${each#*=}"
    mta "${each%=*}" "${each#*=}"
done
