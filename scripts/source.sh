# shellcheck shell=bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# source.sh: how the scripts in this folder get somebody else's source and
# patch it.  Source it after lib.sh, don't run it.
#
# fetch-NAME sets what is on the left and calls fetch_source:
#
#   title     what people call it
#   version   of upstream's release; url and sha256: where it is, its sum
#   given     a tarball that the user names, or empty
#   variable  the variable in which the user names it
#   package   Debian's source package; archive: its tarballs that will do, in
#             which * stands for the rest of a version; suites: of Debian
#             where to look for them
#
# build-NAME sets src (the unpacked tree), orig (the files that patches touch,
# as they came), obj (where it is built) and patches (a quilt series).
#
# shellcheck disable=SC2154

# --- fetching ---------------------------------------------------------------

# The checksum under which a file was fetched lies beside it.
verified() {
    [ -s "$1" ] && [ -s "$1.sha256" ] &&
        echo "$(cat "$1.sha256")  $1" | sha256sum --check --quiet --status
}

# download URI SHA256 NAME [OPTION...]: apt's own downloader needs no package
# more, knows the machine's proxies, and checks the sum.
download() {
    local uri=$1 sum=$2 file=$cache/$3
    shift 3
    rm -f "$file" "$file.sha256"
    /usr/lib/apt/apt-helper -q -o APT::Sandbox::User=root "$@" \
        download-file "$uri" "$file" "SHA256:$sum" >&2 ||
        { rm -f "$file" "$file.FAILED"; return 1; }
    echo "$sum" > "$file.sha256"
    verified "$file" || { rm -f "$file"; return 1; }
    echo "$file"
}

from_cache() {
    local file
    while read -r file; do
        if verified "$file"; then
            echo "$file"
            return
        fi
    done < <(echo "$cache/$(basename "$url")"
             find "$cache" -maxdepth 1 -name "$archive" |
                 sort --version-sort --reverse)
    return 1
}

# A machine without a way to the outside must notice within seconds.
from_upstream() {
    say "fetch $title $version from its makers"
    download "$url" "$sha256" "$(basename "$url")" \
        -o Acquire::Retries=0 -o Acquire::http::Timeout=5 \
        -o Acquire::https::Timeout=5
}

# Of a source package only the orig tarball can be relied on: the rest is
# missing on some mirrors, and we need nothing else.
from_debian() {
    local suite name uri sum pattern
    pattern=${archive//./\\.}
    pattern=${pattern//\*/[^ ]*}
    for suite in $suites; do
        private_apt deb-src "$suite" || continue
        read -r uri name sum < <(apt_private "$suite" \
            apt-get source --print-uris --only-source "$package" 2>/dev/null |
            sed -n "s/^'\([^']*\)' \($pattern\) \
[0-9]* SHA256:\([0-9a-f]*\)\$/\1 \2 \3/p") || continue
        say "fetch $name of Debian $suite (upstream's $version is not" \
            "reachable from here)"
        download "$uri" "$sum" "$name" && return
        warn "cannot fetch $name of Debian $suite"
    done
    return 1
}

# fetch_source: prints the path of the tarball.
fetch_source() {
    if [ -n "$given" ]; then
        [ -f "$given" ] || die "$variable names $given: no such file"
        realpath "$given"
        return
    fi
    mkdir -p "$cache"
    from_cache || from_upstream || from_debian ||
        die "cannot fetch $title, neither $url nor one of Debian's source" \
            "packages; why is said above. Fetch $(basename "$url") elsewhere" \
            "and run again with $variable=/path/to/it"
}

# --- unpacking --------------------------------------------------------------

# unpack_source TARBALL TITLE: into $src.new; false if $src holds it already.
unpack_source() {
    local tarball=$1 title=$2 sum
    sum=$(sha256sum "$tarball" | cut -d ' ' -f 1)
    if [ -e "$src/.memx-source" ] && [ "$(cat "$src/.memx-source")" = "$sum" ]
    then
        return 1
    fi
    rm -rf "$src.new"
    mkdir -p "$src.new"
    step "unpack $(basename "$tarball")" "$logs/$title-unpack.log" \
        tar -x --no-same-owner --strip-components=1 -C "$src.new" -f "$tarball"
    echo "$sum" > "$src.new/.memx-source"
}

# What was made of another version goes with it.
take_unpacked() {
    rm -rf "$src" "$orig" "$obj"
    mv "$src.new" "$src"
}

# --- patching ---------------------------------------------------------------

series() {
    [ -e "$patches/series" ] || return 0
    sed 's/#.*//; s/[[:space:]]*$//; /^$/d' "$patches/series"
}

# Files that a set of patches changes, creates or removes.
patched_files() {
    [ $# = 0 ] || awk '/^(---|\+\+\+) [ab]\// {
        sub(/^.... *[ab]\//, ""); sub(/\t.*/, ""); print }
        /^copy (from|to) / { print $3 }' "$@" | sort -u
}

# The series is applied to untouched copies of the files it concerns; the
# source tree then gets the results that differ from what it has.  So the
# others keep their time of change, and a failing patch changes nothing.
apply_series() {
    local work file name list=() folder
    folder=$(basename "$patches")
    while read -r name; do
        [ -e "$patches/$name" ] ||
            die "$folder/series names $name: no such file"
        list+=("$patches/$name")
    done < <(series)
    mkdir -p "$orig"
    touch "$orig/.created"
    while read -r file; do
        if [ -e "$orig/$file" ] || grep -qxF "$file" "$orig/.created"; then
            continue
        elif [ -e "$src/$file" ]; then
            mkdir -p "$(dirname "$orig/$file")"
            cp -p "$src/$file" "$orig/$file"
        else
            echo "$file" >> "$orig/.created"
        fi
    done < <(patched_files "${list[@]}")

    work=$src.patching
    rm -rf "$work"
    cp -a "$orig" "$work"
    for file in "${list[@]}"; do
        # No fuzz: a hook in a place that only looks alike is worse than none.
        patch -d "$work" -p1 --fuzz=0 --no-backup-if-mismatch -s -f \
            -i "$file" >&2 ||
            die "$folder/$(basename "$file") does not apply to $src"
    done
    while read -r file; do
        if [ ! -e "$work/$file" ]; then
            rm -f "$src/$file"
        elif ! cmp -s "$work/$file" "$src/$file"; then
            mkdir -p "$(dirname "$src/$file")"
            cp "$work/$file" "$src/$file"
            echo "    patched $file" >&2
        fi
    done < <(cd "$orig" && find . -type f ! -name .created -printf '%P\n' &&
             cat .created)
    rm -rf "$work"
}
