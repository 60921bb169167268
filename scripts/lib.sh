# shellcheck shell=bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# lib.sh: what the scripts in this folder share.  Source it, don't run it.
#
# Everything that is built lies under build/, everything that was downloaded
# under $cache; nothing else on the machine is written, apart from packages
# that install-deps asks the distribution for.

# The distribution's own tools first: a python or meson of pyenv, conda or
# the like does not see the distribution's modules.
PATH=/usr/sbin:/usr/bin:/sbin:/bin:$PATH

# shellcheck disable=SC2034  # used by those who source this file
{
    top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    build=$top/build
    prefix=$build/prefix
    cache=${MEMX_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/memx}
    jobs=${MEMX_JOBS:-$(nproc)}
    multiarch=$(uname -m)-linux-gnu
}

say() { printf '==> %s\n' "$*" >&2; }
warn() { printf 'warning: %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# distribution ID|VERSION_ID|VERSION_CODENAME|PRETTY_NAME
distribution() {
    # shellcheck disable=SC1091
    (. /etc/os-release && eval "printf '%s' \"\${$1:-}\"")
}

# as_root COMMAND...: through sudo unless we are root already
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo -- "$@"
    else
        die "this needs root, and there is no sudo here; run as root: $*"
    fi
}

# step LABEL LOG COMMAND...: runs the command with its output in LOG, shows
# where it is (one changing line on a terminal, one line in 20 s elsewhere),
# and the end of LOG if it fails.
step() {
    local label=$1 log=$2 status began=$SECONDS
    shift 2
    mkdir -p "$(dirname "$log")"
    say "$label"
    status=0
    "$@" 2>&1 </dev/null | step_progress "$log" || status=$?
    if [ "$status" != 0 ]; then
        tail -n 30 "$log" >&2
        die "$label: failed (status $status); all of its output: $log"
    fi
    if [ $((SECONDS - began)) -ge 5 ]; then
        say "$label: done in $((SECONDS - began)) s"
    fi
}

step_progress() {
    local log=$1 line shown=$SECONDS width
    width=$((${COLUMNS:-80} - 1))
    : > "$log"
    while IFS= read -r line || [ -n "$line" ]; do
        printf '%s\n' "$line" >> "$log"
        if [ -t 2 ]; then
            printf '\r\033[K%.*s' "$width" "$line" >&2
        elif [ $((SECONDS - shown)) -ge 20 ]; then
            shown=$SECONDS
            printf '    %.*s\n' "$width" "$line" >&2
        fi
    done
    if [ -t 2 ]; then
        printf '\r\033[K' >&2
    fi
}

# wait_until SECONDS WHAT COMMAND...: until COMMAND succeeds
wait_until() {
    local seconds=$1 what=$2 end
    shift 2
    end=$((SECONDS + seconds))
    until "$@"; do
        [ "$SECONDS" -lt "$end" ] ||
            { warn "$what: not within $seconds s"; return 1; }
        sleep 0.1
    done
}

# --- the distribution's packages ------------------------------------------

is_installed() {
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

is_available() {
    [[ $(apt-cache policy "$1" 2>/dev/null) =~ Candidate:\ [^\(] ]]
}

apt_get() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y \
        -o DPkg::Lock::Timeout=600 -o Acquire::Retries=2 "$@"
}

# install_packages NAME...: only what is missing.  "?NAME" is installed only
# where the distribution has such a package.
install_packages() {
    local name missing=() optional=()
    for name; do
        is_installed "${name#\?}" && continue
        case $name in
        \?*) optional+=("${name#\?}") ;;
        *) missing+=("$name") ;;
        esac
    done
    [ ${#missing[@]} = 0 ] && [ ${#optional[@]} = 0 ] && return
    command -v apt-get >/dev/null ||
        die "no apt-get here: install what corresponds to ${missing[*]}"
    # A fresh machine has no package lists yet; an old one may have lists
    # that name packages which are gone.
    for name in "${missing[@]}"; do
        is_available "$name" && continue
        step "refresh the package lists" "$build/logs/apt-update.log" \
            apt_get update
        break
    done
    for name in "${optional[@]}"; do
        is_available "$name" && missing+=("$name")
    done
    [ ${#missing[@]} = 0 ] && return
    say "install: ${missing[*]}"
    if ! (step "install ${#missing[@]} packages" "$build/logs/apt-install.log" \
            apt_get install --no-install-recommends "${missing[@]}"); then
        step "refresh the package lists" "$build/logs/apt-update.log" \
            apt_get update
        step "install ${#missing[@]} packages" "$build/logs/apt-install.log" \
            apt_get install --no-install-recommends "${missing[@]}"
    fi
}

# --- packages of another release, without touching the machine's sources --

# The Debian mirror this machine uses, from its own apt configuration; empty
# where it uses none (Ubuntu).
debian_mirror() {
    debian_index() {
        # shellcheck disable=SC2016  # apt expands these
        apt-get indextargets --format '$(ORIGIN) $(CODENAME) $(REPO_URI)' \
            'Created-By: Packages' 2>/dev/null |
            awk -v codename="$(distribution VERSION_CODENAME)" \
                '$1 == "Debian" && $2 == codename { print $3; exit }'
    }
    if [ "$(distribution ID)" = debian ] && [ -z "$(debian_index)" ]; then
        step "refresh the package lists" "$build/logs/apt-update.log" \
            apt_get update
    fi
    debian_index
}

# private_apt KIND SUITE (deb|deb-src): an apt state of our own for one suite
# of Debian.  Afterwards "apt_private SUITE apt-get ..." uses it.
private_apt() {
    local kind=$1 suite=$2 dir=$cache/apt/$2 mirror keyring signed=
    mirror=$(debian_mirror)
    if [ -z "$mirror" ]; then
        warn "apt on this machine knows no Debian mirror to take $suite from"
        return 1
    fi
    for keyring in /usr/share/keyrings/debian-archive-keyring.{pgp,gpg}; do
        if [ -e "$keyring" ]; then
            signed="[signed-by=$keyring] "
            break
        fi
    done
    mkdir -p "$dir"/{lists,archives}/partial
    printf '%s %s%s %s main\n' "$kind" "$signed" "$mirror" "$suite" \
        > "$dir/sources.list"
    apt_private "$suite" apt-get -qq update >&2 ||
        { warn "cannot read the signed index of Debian $suite"; return 1; }
}

apt_private() {
    local dir=$cache/apt/$1 command=$2
    shift 2
    "$command" -o Dir::Etc::sourcelist="$dir/sources.list" \
        -o Dir::Etc::sourceparts=/dev/null \
        -o Dir::Etc::preferencesparts=/dev/null \
        -o Dir::State="$dir" -o Dir::State::lists="$dir/lists" \
        -o Dir::State::status=/var/lib/dpkg/status \
        -o Dir::Cache="$dir" -o APT::Sandbox::User=root \
        -o Acquire::Languages=none -o Acquire::Retries=2 \
        -o Acquire::http::Timeout=20 -o Acquire::https::Timeout=20 "$@"
}

# --- one build at a time ----------------------------------------------------

# take_build_lock: until the calling script ends, no other one builds here.
take_build_lock() {
    [ -z "${MEMX_BUILD_LOCKED:-}" ] || return 0
    exec 9> "$build/.lock"
    if ! flock -n 9; then
        say "another build is running in $build; waiting for its end"
        flock -w 3600 9 || die "it did not end within an hour"
    fi
    export MEMX_BUILD_LOCKED=1
}
