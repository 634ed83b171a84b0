#!/usr/bin/env bash
# Builds the Debian package: the last line of output is its path.
#
#   systemd/package.sh                        release profile, into target/debian
#   systemd/package.sh --binary FILE          with a program that is built already
#   systemd/package.sh --output DIRECTORY
set -euo pipefail
cd "$(dirname "$0")/.."
source integration/prepare.sh

binary='' output=''
while [ $# -gt 0 ]; do
    case $1 in
        --binary) binary=$(realpath "${2:?a file}") && shift 2 ;;
        --output) output=${2:?a directory} && shift 2 ;;
        *)
            sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
            exit 2
            ;;
    esac
done
prepare_packages dh=debhelper
if [ -z "$binary" ]; then
    prepare_toolchain
    cargo build --locked --release --package walferry --bin walferry
    binary=$(realpath "${CARGO_TARGET_DIR:-target}/release/walferry")
fi
mkdir -p "${output:=${CARGO_TARGET_DIR:-target}/debian}"
output=$(realpath "$output")

# dh works in a directory of its own: it leaves files, and the package's beside it.
build=$(mktemp --directory -t walferry-package.XXXXXX)
trap 'rm -rf "$build"' EXIT
source=$build/walferry
mkdir "$source"
cp -r systemd/debian systemd/walferry.service systemd/walferry-bootstrap.service \
    systemd/walferry.toml README.md LICENSE "$source"
cp systemd/walferry.sysusers systemd/walferry.tmpfiles "$source/debian"
install -m 755 "$binary" "$source/walferry"

version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version *= *"\(.*\)"/\1/p' Cargo.toml)
# The time of the last commit, so that the same sources give the same package.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH
cat >"$source/debian/changelog" <<END
walferry ($version) unstable; urgency=medium

  * As in the repository.

 -- the walferry developers <walferry@localhost>  $(date --utc --rfc-email --date="@$SOURCE_DATE_EPOCH")
END

(cd "$source" && dpkg-buildpackage --build=binary --no-sign --no-check-builddeps) >"$build/log" 2>&1 || {
    cat "$build/log" >&2
    exit 1
}
cp "$build"/walferry*.deb "$output"
echo "$output/walferry_${version}_$(dpkg --print-architecture).deb"
