# What the scripts here, systemd/package.sh and .ci/run need of the machine. To be sourced, from the top directory.

# Debian packages that are missing are installed when we are root; otherwise the line to type is
# printed, and that is the end. Arguments are what one script alone needs, as program=package.
prepare_packages() {
    local missing=() need
    if [ -z "${WALFERRY_PG_BIN:-}" ] && [ ! -x /usr/lib/postgresql/15/bin/postgres ]; then
        missing+=(postgresql-15)
    fi
    command -v zstd >/dev/null || missing+=(zstd)
    command -v openssl >/dev/null || missing+=(openssl) # authority.sh
    command -v promtool >/dev/null || missing+=(prometheus) # the dashboard's test
    # Rust links with cc, and the zstd library is C.
    command -v cc >/dev/null || missing+=(gcc libc6-dev)
    command -v systemd-analyze >/dev/null || missing+=(systemd) # tests/service.rs
    for need in "$@"; do
        command -v "${need%%=*}" >/dev/null || missing+=("${need#*=}")
    done
    [ ${#missing[@]} -eq 0 ] && return

    if [ "$(id -u)" -ne 0 ]; then
        echo "Some programs are missing. Type this, then start again:" >&2
        echo "    sudo apt-get install --yes --no-install-recommends ${missing[*]}" >&2
        exit 1
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update --quiet
    # The package would create a cluster and start it. Nobody asked for a server here.
    if [[ " ${missing[*]} " == *" postgresql-15 "* && ! -e /etc/postgresql-common/createcluster.conf ]]; then
        apt-get install --quiet --yes --no-install-recommends postgresql-common
        echo "create_main_cluster = false" >>/etc/postgresql-common/createcluster.conf
    fi
    # Nor for a Prometheus: the tests start their own. Masked, systemd does not start it, now or when
    # the machine starts; in a container without systemd a policy says no while it is installed.
    local policy="" status=0
    if [[ " ${missing[*]} " == *" prometheus "* ]]; then
        mkdir -p /etc/systemd/system
        [ -e /etc/systemd/system/prometheus.service ] ||
            ln -s /dev/null /etc/systemd/system/prometheus.service
        if [ ! -d /run/systemd/system ] && [ ! -e /usr/sbin/policy-rc.d ]; then
            policy=/usr/sbin/policy-rc.d
            printf '#!/bin/sh\nexit 101\n' >$policy
            chmod +x $policy
        fi
    fi
    apt-get install --quiet --yes --no-install-recommends "${missing[@]}" || status=$?
    [ -z "$policy" ] || rm -f "$policy"
    return $status
}

# The toolchain that the workspace names, if rustup has it; otherwise any rustc that is new enough.
prepare_toolchain() {
    if ! command -v cargo >/dev/null && [ -x "${CARGO_HOME:-$HOME/.cargo}/bin/cargo" ]; then
        export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
    fi
    if ! command -v cargo >/dev/null; then
        echo "There is no cargo. Install Rust from https://rustup.rs, then start again." >&2
        exit 1
    fi
    local channel minimum found
    channel=$(sed -n '/^\[workspace.metadata.toolchain\]/,/^\[/s/^channel *= *"\(.*\)"/\1/p' Cargo.toml)
    minimum=$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' Cargo.toml)
    if [ -z "$channel" ] || [ -z "$minimum" ]; then
        echo "Cargo.toml names no toolchain channel or no rust-version." >&2
        exit 1
    fi
    if command -v rustup >/dev/null && rustup toolchain list | grep --quiet "^$channel-"; then
        export RUSTUP_TOOLCHAIN="$channel"
        echo "toolchain: $channel, as Cargo.toml names it"
        return
    fi
    found=$(rustc --version | cut -d ' ' -f 2)
    if [ "$(printf '%s\n%s\n' "$minimum" "$found" | sort --version-sort | head -n 1)" != "$minimum" ]; then
        echo "rustc is $found; at least $minimum is needed: rustup toolchain install $channel" >&2
        exit 1
    fi
    echo "toolchain: $found; Cargo.toml names $channel, which rustup does not have here"
}
