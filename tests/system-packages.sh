#!/usr/bin/env bash
# Install the Debian packages whose programs the tests talk to: Postfix as a remote MX, swaks and
# msmtp as submitters, Dovecot, mutt and isync as programs that share a mailbox with the relay, strace to see
# the sync before the 250, debootstrap and mmdebstrap for roots in which packages are installed, bindfs and mergerfs as disks, openssl for certificates, faketime
# to let a clock jump, Chromium and its driver for the pages, nginx as a proxy in front of them, curl, two readers of
# reports, a verifier of signatures, sqlite3, PostgreSQL. With "languages": those that run the programs in docs/snippets.md.
# With "own": those of `make test`, which leaves out the suites that need a browser, databases and other mail servers.
# As root, or where CI is set, they are installed. On a person's machine nothing is changed through sudo
# unless SYSTEM_PACKAGES=install says so: then, as without apt or the rights, those tests are skipped, and
# one line says why and how to have them run.
set -euo pipefail

declare -A package_of=([postfix]=postfix [swaks]=swaks [msmtp]=msmtp [strace]=strace
    [openssl]=openssl [dovecot]=dovecot-imapd [mutt]=mutt [mbsync]=isync [faketime]=faketime
    [chromium]=chromium [chromedriver]=chromium-driver [nginx]=nginx
    [opendkim-testmsg]=opendkim-tools [ip]=iproute2 [systemd-analyze]=systemd [sqlite3]=sqlite3
    [curl]=curl [jq]=jq [debootstrap]=debootstrap [mmdebstrap]=mmdebstrap
    [bindfs]=bindfs [mergerfs]=mergerfs)
PATH="$PATH:/usr/sbin:/sbin"
if [ "${1:-}" = languages ]; then
    package_of=([curl]=curl [jq]=jq [java]=default-jdk-headless [mcs]=mono-mcs
        [mono]=libmono-system-net-http4.0-cil [php]=php-cli [ruby]=ruby)
fi
if [ "${1:-}" = own ]; then
    package_of=([msmtp]=msmtp [strace]=strace [openssl]=openssl [ip]=iproute2 [systemd-analyze]=systemd [curl]=curl [jq]=jq)
fi
missing=()
for program in "${!package_of[@]}"; do
    command -v "$program" >/dev/null || missing+=("${package_of[$program]}")
done
if [ "${1:-}" = languages ]; then
    # libraries, of which no program shows whether they are there
    [ -e /usr/share/java/javax.mail.jar ] || missing+=(libmail-java)
    [ -e /usr/share/php/libphp-phpmailer ] || missing+=(libphp-phpmailer)
    [ -e /usr/share/php/Symfony/Component/Mailer ] || missing+=(php-symfony-mailer)
    ruby -e 'require "mail"' 2>/dev/null || missing+=(ruby-mail)
elif [ "${1:-}" != own ]; then
    # the first font of the pages, in which the pictures of docs/images are taken
    compgen -G "/usr/share/fonts/*/inter/*" >/dev/null || missing+=(fonts-inter)
    [ -e /usr/lib/dovecot/pop3 ] || missing+=(dovecot-pop3d)
    # a server whose programs are in no PATH, and which needs no cluster of the system's
    compgen -G "/usr/lib/postgresql/*/bin/postgres" >/dev/null || missing+=(postgresql)
    # swaks has TLS by a module that its package only recommends
    /usr/bin/perl -MNet::SSLeay -e 1 2>/dev/null || missing+=(libnet-ssleay-perl)
    # readers of reports
    /usr/bin/perl -MSisimai -e 1 2>/dev/null || missing+=(libsisimai-perl)
    /usr/bin/perl -MMail::DeliveryStatus::BounceParser -e 1 2>/dev/null ||
        missing+=(libmail-deliverystatus-bounceparser-perl)
fi
# Unpacked into .system, not installed: tests start these servers by their paths. The LMTP server's
# version must be Dovecot's; Exim excludes Postfix; the others would start a service. All at once: apt
# reads its lists for seconds. With each package that an installation would bring along: names of libraries
# differ between versions. But clients of databases, updates of signatures, fonts and scripts of pages are not needed.
unpack() {
    local folder path version
    local -A wanted=([usr/sbin/exim4]=exim4-daemon-light [usr/sbin/opendkim]=opendkim [usr/sbin/pgbouncer]=pgbouncer
        [usr/sbin/pgpool]=pgpool2 [usr/sbin/haproxy]=haproxy [usr/bin/patroni]=patroni [usr/bin/etcd]=etcd-server [usr/bin/rspamd]=rspamd [usr/sbin/clamd]=clamav-daemon
        [usr/sbin/opendmarc]=opendmarc [usr/sbin/clamav-milter]=clamav-milter [usr/sbin/unbound]=unbound [usr/bin/fail2ban-regex]=fail2ban)
    if [ "$1" = own ]; then
        wanted=([usr/sbin/opendkim]=opendkim [usr/sbin/unbound]=unbound [usr/bin/fail2ban-regex]=fail2ban)
    fi
    [ "$1" != own ] && version=$(dpkg-query -W -f '${Version}' dovecot-core 2>/dev/null) &&
        apt-cache show "dovecot-lmtpd=$version" >/dev/null 2>&1 && wanted[usr/lib/dovecot/lmtp]="dovecot-lmtpd=$version"
    for path in "${!wanted[@]}"; do
        [ ! -e "/$path" ] && [ ! -e ".system/$path" ] || unset "wanted[$path]"
    done
    [ ${#wanted[@]} != 0 ] && folder=$(mktemp -d) && mkdir "$folder/etc" || return 0
    (
        cd "$folder"
        apt-get -s install --no-install-recommends "${wanted[@]}" |
            awk '$1 == "Inst" && $2 !~ /-client|freshclam|^fonts-|^libjs-/ { print $2 }' >names &&
            xargs timeout 120 apt-get -q -o Acquire::Retries=1 -o Acquire::http::Timeout=20 download <names &&
            for each in *.deb; do dpkg-deb -x "$each" .; done
    ) && mkdir -p .system && cp -r "$folder"/{usr,etc} .system/ || true
    for path in "${!wanted[@]}"; do
        [ -e ".system/$path" ] || echo "tests that need ${wanted[$path]} are skipped: it cannot be fetched" >&2
    done
    rm -rf "$folder"
}
if [ "${1:-}" != languages ] && { [ "$(id -u)" = 0 ] || [ -n "${CI:-}${SYSTEM_PACKAGES:-}" ]; }; then
    trap 'unpack "${1:-}"' EXIT
fi
[ ${#missing[@]} = 0 ] && exit 0

skip() {
    echo "tests that need ${missing[*]} are skipped: $1" >&2
    exit 0
}
command -v apt-get >/dev/null || skip "this system has no apt-get"
if [ "$(id -u)" = 0 ]; then
    as_root=()
elif [ -n "${CI:-}" ]; then
    sudo -n true 2>/dev/null || skip "installing packages needs root"
    as_root=(sudo -n)
elif [ "${SYSTEM_PACKAGES:-}" = install ]; then
    as_root=(sudo)
else
    skip "make test SYSTEM_PACKAGES=install installs them through sudo"
fi

# Nothing that is installed here may start: Debian's packages ask this script first.
policy=/usr/sbin/policy-rc.d
kept=""
restore() {
    "${as_root[@]}" rm -f "$policy"
    [ -z "$kept" ] || "${as_root[@]}" mv "$kept" "$policy"
}
if [ -e "$policy" ]; then
    kept="$policy.kept-by-relay"
    "${as_root[@]}" mv "$policy" "$kept"
fi
trap 'restore; unpack "${1:-}"' EXIT
printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
"${as_root[@]}" chmod 755 "$policy"

apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q
    -o Acquire::Retries=1 -o Acquire::http::Timeout=20 -o DPkg::Lock::Timeout=60)
"${apt[@]}" update || skip "the package lists cannot be fetched"
if [[ " ${missing[*]} " == *" postgresql "* ]]; then
    clusters=/etc/postgresql-common/createcluster.conf
    "${apt[@]}" install -y --no-install-recommends --no-remove postgresql-common || true
    "${as_root[@]}" sed -i 's/^#\?create_main_cluster.*/create_main_cluster = false/' "$clusters" || true
fi
# --no-remove: a mail server that is already here stays
"${apt[@]}" install -y --no-install-recommends --no-remove "${missing[@]}" ||
    skip "apt-get does not install them (another mail server may be in the way)"
