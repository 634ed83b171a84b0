#!/usr/bin/env bash
# The package on two machines that really boot: systemd-nspawn --boot, on trees that debootstrap made.
# PostgreSQL 15 runs on one of them, db1. It bootstraps db2 by its one-shot unit, runs a load, kills
# both agents while it runs, reboots both machines, loses db1 for good, promotes db2, and compares
# every table with what db1 had committed.
#
#   integration/service.sh                                  as root; some minutes
#   SERVICE_SABOTAGE=1 integration/service.sh               one row is changed first; exit 1
#   SERVICE_BASE=/var/cache/base integration/service.sh     keeps the tree there, for the next time
#   SERVICE_BINARY=target/debug/walferry integration/service.sh
#
# It leaves nothing running, and nothing behind but SERVICE_BASE.
set -euo pipefail
cd "$(dirname "$0")/.."
source integration/prepare.sh

if [ "$(id -u)" -ne 0 ]; then
    echo "Machines are booted by root only: sudo integration/service.sh" >&2
    exit 2
fi
prepare_packages debootstrap=debootstrap systemd-nspawn=systemd-container dh=debhelper ip=iproute2 mkfs.ext4=e2fsprogs

folder=$(mktemp --directory -t walferry-service.XXXXXX)
tag=$(basename "$folder" | tail -c 7)
bridge=wf-$tag
declare -A spawner=() # machine: process id of its systemd-nspawn
declare -A booted=()  # machine: which boot of it we wait for

clock() { echo $((${EPOCHREALTIME/[.,]/} / 1000)); }
seconds_of() { printf '%d.%03d s' $(($1 / 1000)) $(($1 % 1000)); }
since() { seconds_of $(($(clock) - $1)); }
begun=$(clock)
say() { printf '%11s  %s\n' "$(since "$begun")" "$*"; }
fail() {
    say "FAILED: $*" >&2
    local machine
    for machine in "${!spawner[@]}"; do
        echo "--- $machine" >&2
        within "$machine" journalctl --no-pager --lines 60 --unit walferry --unit walferry-bootstrap >&2 || true
    done
    exit 1
}

# ---- machines

# Where a cgroup of our own is made for a machine: its systemd must be alone in it.
cgroup_roots() {
    local root
    for root in /sys/fs/cgroup /sys/fs/cgroup/unified /sys/fs/cgroup/systemd; do
        [ ! -e "$root/cgroup.procs" ] || echo "$root"
    done
}

boot() {
    local machine=$1 root
    for root in $(cgroup_roots); do mkdir -p "$root/walferry-$tag-$machine"; done
    # Without a systemd here nobody registers machines; and what nspawn itself forbids by seccomp does
    # not matter to the test.
    (
        for root in $(cgroup_roots); do echo "$BASHPID" >"$root/walferry-$tag-$machine/cgroup.procs"; done
        SYSTEMD_SECCOMP=0 exec systemd-nspawn --boot --quiet --register=no --keep-unit \
            --console=pipe --network-bridge="$bridge" --machine="$machine-$tag" \
            --hostname="$machine" --directory="$folder/$machine" </dev/null >>"$folder/$machine.console" 2>&1
    ) &
    spawner[$machine]=$!
    booted[$machine]=none
    await_boot "$machine"
}

# The process that is systemd in it; nothing if there is none.
init_of() {
    local children=''
    read -r children 2>/dev/null <"/proc/${spawner[$1]}/task/${spawner[$1]}/children" || true
    echo "${children%% *}"
}

# Runs a command in a machine, as root.
within() {
    local machine=$1 init
    shift
    init=$(init_of "$machine")
    [ -n "$init" ] || return 125
    nsenter --target "$init" --all -- env --ignore-environment \
        PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 "$@"
}

# ... and as the server's user.
as_postgres() {
    local machine=$1
    shift
    within "$machine" runuser -u postgres -- "$@"
}

await() {
    local what=$1 limit=$2 deadline
    shift 2
    deadline=$((SECONDS + limit))
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $deadline ] || fail "$what: not within $limit s"
        sleep 0.1
    done
}

# A boot is another one if it has another first process: /proc of the machine begins anew.
is_up() {
    local init state
    init=$(init_of "$1")
    [ -n "$init" ] && [ "$init" != "${booted[$1]}" ] || return 1
    state=$(within "$1" systemctl is-system-running) || true
    case $state in running | degraded) return 0 ;; *) return 1 ;; esac
}

await_boot() {
    local from
    from=$(clock)
    await "$1 boots" 90 is_up "$1"
    booted[$1]=$(init_of "$1")
    say "$1 is up, after $(since "$from"): systemd $(within "$1" systemctl --version | sed -n '1s/.* \([0-9]*\) .*/\1/p'), $(within "$1" systemctl is-system-running || true)"
}

# A machine goes down and comes up, as after `reboot`. Where /run is on a disk, systemd-nspawn ends
# instead of going round: then it is started again.
restart_machine() {
    local init
    init=$(init_of "$1")
    say "$1 reboots"
    within "$1" systemctl --no-block reboot 2>/dev/null || true # it may be gone before it answers
    await "$1 goes down" 90 is_gone "$init"
    sleep 0.5
    if kill -0 "${spawner[$1]}" 2>/dev/null; then
        await_boot "$1"
    else
        boot "$1"
    fi
}
is_gone() { [ ! -e "/proc/$1" ]; }

# The power is gone: no process of it runs another instruction.
pull_the_plug() {
    kill -KILL "${spawner[$1]}" "$(init_of "$1")" 2>/dev/null || true
    wait "${spawner[$1]}" 2>/dev/null || true
    unset "spawner[$1]"
}

clean_up() {
    local status=$? machine root
    set +e
    fsfreeze --unfreeze "$folder/db2/var/lib/walferry" 2>/dev/null
    for machine in "${!spawner[@]}"; do pull_the_plug "$machine"; done
    ip link delete "$bridge" 2>/dev/null
    # From the leaves on; a process that was killed is in it for a moment.
    for _ in {1..50}; do
        for root in $(cgroup_roots); do
            find "$root" -maxdepth 1 -name "walferry-$tag-*" -exec find {} -depth -type d -delete \; 2>/dev/null
        done
        [ -n "$(for root in $(cgroup_roots); do find "$root" -maxdepth 1 -name "walferry-$tag-*"; done)" ] || break
        sleep 0.1
    done
    for _ in {1..50}; do
        ! mountpoint --quiet "$folder/db2/var/lib/walferry" || umount "$folder/db2/var/lib/walferry" 2>/dev/null && break
        sleep 0.1
    done
    # A machine whose plug was pulled leaves its directory for mounts from outside.
    rm -rf "/run/systemd/nspawn/propagate/db1-$tag" "/run/systemd/nspawn/propagate/db2-$tag"
    rm -rf --one-file-system "$folder"
    exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

# ---- what is put on them

if [ -n "${SERVICE_BINARY:-}" ]; then
    package=$(systemd/package.sh --output "$folder" --binary "$SERVICE_BINARY" | tail -n 1)
else
    package=$(systemd/package.sh --output "$folder" | tail -n 1)
fi
say "the package: $(basename "$package"), $(stat --format=%s "$package") bytes"

# Debian 12, from where this machine has its own packages.
base=${SERVICE_BASE:-$folder/base}
if [ ! -e "$base" ]; then
    mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Codename: bookworm' 'Component: main' |
        head -n 1)
    [ -n "$mirror" ] || fail "this machine's apt names no source of Debian 12"
    debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,iproute2 bookworm "$base.new" \
        "$mirror" >"$folder/debootstrap.log" 2>&1 || { tail "$folder/debootstrap.log" >&2 && fail debootstrap; }
    # No server is wanted where none is asked for.
    chroot "$base.new" sh -c 'export DEBIAN_FRONTEND=noninteractive
        apt-get install -qq --yes --no-install-recommends postgresql-common
        echo "create_main_cluster = false" >>/etc/postgresql-common/createcluster.conf
        apt-get install -qq --yes --no-install-recommends postgresql-15 libgcc-s1
        apt-get clean' >"$folder/debootstrap.log" 2>&1 || { tail "$folder/debootstrap.log" >&2 && fail "apt-get install"; }
    mv "$base.new" "$base"
    say "a Debian tree, $(du --summarize --human-readable "$base" | cut -f 1)"
fi

ip link add "$bridge" type bridge
ip link set "$bridge" up
integration/authority.sh "$folder/tls" db1=10.123.45.1 db2=10.123.45.2
for machine in db1 db2; do
    tree=$folder/$machine
    cp --archive --reflink=auto "$base" "$tree"
    echo "$machine" >"$tree/etc/hostname"
    printf '127.0.0.1 localhost\n10.123.45.1 db1\n10.123.45.2 db2\n' >"$tree/etc/hosts"
    printf '[Match]\nName=host0\n[Network]\nAddress=10.123.45.%s/24\nLinkLocalAddressing=no\n' \
        "${machine#db}" >"$tree/etc/systemd/network/10-host0.network"
    rm -f "$tree/etc/machine-id" && touch "$tree/etc/machine-id"
    chroot "$tree" systemctl --quiet enable systemd-networkd.service
    cp "$package" "$tree/root/walferry.deb"
    if [ "$machine" = db2 ]; then
        # A file system of its own, to be frozen.
        truncate --size=4G "$folder/disk"
        mkfs.ext4 -q "$folder/disk"
        mkdir "$tree/var/lib/walferry"
        mount -o loop "$folder/disk" "$tree/var/lib/walferry"
        rmdir "$tree/var/lib/walferry/lost+found"
    fi
    boot "$machine"
done

for machine in db1 db2; do
    within "$machine" dpkg --install /root/walferry.deb >"$folder/dpkg.log" 2>&1 || { cat "$folder/dpkg.log" >&2 && fail "dpkg"; }
    state=$(within "$machine" systemctl show walferry --property=ActiveState,UnitFileState | sort | xargs)
    [ "$state" = "ActiveState=inactive UnitFileState=disabled" ] || fail "the package has started or enabled the service: $state"
    tls=$folder/$machine/etc/walferry/tls
    cp "$folder/tls/ca.crt" "$folder/tls/$machine.crt" "$tls"
    cp "$folder/tls/$machine.key" "$tls"
    within "$machine" chown root:postgres "/etc/walferry/tls/$machine.key"
    chmod 640 "$tls/$machine.key"
done
say "installed on both; neither started nor enabled"
within db2 sh -c 'echo "[nonsense" >>/etc/walferry/walferry.toml'
within db2 systemctl start walferry 2>/dev/null && fail "started with a configuration that is none"
sleep 3
state=$(within db2 systemctl show walferry --property=ActiveState,NRestarts,ExecMainStatus | sort | xargs)
[ "$state" = "ActiveState=failed ExecMainStatus=2 NRestarts=0" ] || fail "wrong configuration: $state"
say "a wrong configuration: exit status 2, and no second try"
within db2 systemctl reset-failed walferry

within db1 pg_createcluster 15 main -- --data-checksums >/dev/null
printf '%s\n' "fsync = on" "max_slot_wal_keep_size = 4GB" "max_wal_size = 256MB" "checkpoint_timeout = 30s" \
    >"$folder/db1/etc/postgresql/15/main/conf.d/test.conf"
within db1 systemctl start postgresql@15-main
within db1 systemctl --quiet enable postgresql
[ "$(as_postgres db1 psql -XAtc 'show fsync')" = on ] || fail "a server without fsync"
as_postgres db1 createdb bench
as_postgres db1 pgbench --quiet -i -s 10 bench >/dev/null 2>&1

cat >"$folder/db1/etc/walferry/walferry.toml" <<'END'
[node]
name = "db1"
[source]
data_directory = "/var/lib/postgresql/15/main"
conninfo = "host=/run/postgresql user=postgres dbname=postgres"
[archive]
directory = "/var/lib/walferry/archive"
[listen]
replication = "10.123.45.1:5480"
metrics = "127.0.0.1:5481"
[tls]
certificate = "/etc/walferry/tls/db1.crt"
key = "/etc/walferry/tls/db1.key"
authority = "/etc/walferry/tls/ca.crt"
END
cat >"$folder/db2/etc/walferry/walferry.toml" <<'END'
[node]
name = "db2"
[source]
peers = ["db1@10.123.45.1:5480"]
[archive]
directory = "/var/lib/walferry/archive"
[store]
data_directory = "/var/lib/walferry/store"
restart_point_interval = "10s"
[listen]
metrics = "127.0.0.1:5481"
[tls]
certificate = "/etc/walferry/tls/db2.crt"
key = "/etc/walferry/tls/db2.key"
authority = "/etc/walferry/tls/ca.crt"
END

# ---- the service

status_of() { within "$1" systemctl show walferry --property=StatusText --value; }
show() { say "$1: $(within "$1" systemctl show walferry --property=ActiveState,NRestarts --value | xargs | sed 's/ / /'), $(status_of "$1")"; }
is_active() { [ "$(within "$1" systemctl is-active walferry)" = active ]; }
follower_has() { as_postgres db2 walferry wait --replayed "$1" --timeout 1s; }
# All that db1 has flushed is replayed on db2; prints how long that took.
catch_up() {
    local end from
    from=$(clock)
    end=$(as_postgres db1 psql -XAtd bench -c 'select pg_current_wal_flush_lsn()')
    await "db2 replays up to $end" 60 follower_has "$end"
    say "db2 has replayed $end, $(since "$from") later"
}

from=$(clock)
within db1 systemctl enable --now --quiet walferry || fail "db1's agent does not start"
say "db1's agent is ready, after $(since "$from")"
show db1
as_postgres db1 psql -XAtqc checkpoint
from=$(clock)
within db2 systemctl start walferry-bootstrap || fail "bootstrap"
say "bootstrapped by the one-shot unit, in $(since "$from"): $(within db2 journalctl --no-pager --output=cat --unit walferry-bootstrap | grep 'is ready')"
within db2 systemctl start walferry-bootstrap 2>/dev/null && fail "a second bootstrap was not refused"
say "a second one is refused: $(within db2 journalctl --no-pager --output=cat --unit walferry-bootstrap | grep '^walferry:' | tail -n 1)"
within db2 systemctl enable --now --quiet walferry || fail "db2's agent does not start"
catch_up
show db2

# A load that goes on until its machine goes down.
as_postgres db1 pgbench -n -c 4 -j 2 -T 3600 bench >"$folder/load.log" 2>&1 &
load=$!
sleep 4

restarts() { within "$1" systemctl show walferry --property=NRestarts --value; }
is_back() { [ "$(restarts "$1")" -gt "$2" ] && is_active "$1"; }
killed() {
    local before
    before=$(restarts "$1")
    from=$(clock)
    within "$1" systemctl kill --signal=KILL walferry
    await "systemd starts $1's agent again" 30 is_back "$1" "$before"
    say "$1's agent killed, and ready again after $(since "$from")"
    sleep "$2"
}
killed db2 3
killed db1 2
killed db2 0
killed db1 3
catch_up
# Its stop keeps the limit, and its start needs no hand.
from=$(clock)
within db2 systemctl restart walferry
say "db2's agent restarted under load, in $(since "$from")"
from=$(clock)
pid=$(within db1 systemctl show walferry --property=MainPID --value)
within db1 dpkg --install /root/walferry.deb >"$folder/dpkg.log" 2>&1 || { cat "$folder/dpkg.log" >&2 && fail "dpkg"; }
[ "$(within db1 systemctl show walferry --property=MainPID --value)" != "$pid" ] || fail "an upgrade restarts nothing"
is_active db1 || fail "db1's agent does not come back from an upgrade"
say "db1's package installed again under load, and its agent ready, after $(since "$from")"
# A process that does nothing any more is what the watchdog is for. First the control: it is fed.
within db2 sh -c 'mkdir /run/systemd/system/walferry.service.d
    printf "[Service]\nWatchdogSec=4s\nTimeoutAbortSec=2s\n" >/run/systemd/system/walferry.service.d/test.conf
    systemctl daemon-reload && systemctl restart walferry'
before=$(restarts db2)
sleep 10
[ "$(restarts db2)" = "$before" ] || fail "the watchdog bites an agent that lives"
from=$(clock)
within db2 systemctl kill --signal=STOP walferry
await "the watchdog bites" 30 is_back db2 "$before"
say "db2's agent stood still with a watchdog of 4 s; ready again after $(since "$from")"
within db2 journalctl --no-pager --unit walferry | grep "Failed with result 'watchdog'" >"$folder/bites" ||
    fail "it was not the watchdog"
# A disk that hangs is not: whoever writes to a frozen file system waits as for a disk that is gone.
before=$(restarts db2)
sleep 2
fsfreeze --freeze "$folder/db2/var/lib/walferry"
sleep 12
waiting=$(within db2 sh -c 'cat /proc/$(systemctl show walferry --property=MainPID --value)/task/*/stat' |
    sed -n 's/.*(\(.*\)) D .*/\1/p' | sort -u | xargs)
fsfreeze --unfreeze "$folder/db2/var/lib/walferry"
[ -n "$waiting" ] || fail "nothing waited for the frozen disk"
catch_up # a thread that waits for the disk dies only when it gets it
[ "$(restarts db2)" = "$before" ] || fail "the watchdog bites an agent that waits for its disk"
say "db2's disk hung for 12 s with a watchdog of 4 s: $waiting waited, and the agent was left alone"
within db2 sh -c 'rm -r /run/systemd/system/walferry.service.d; systemctl daemon-reload && systemctl restart walferry'
catch_up
say "db2 loses its power"
pull_the_plug db2
sleep 2
boot db2
is_active db2 || fail "db2's agent does not start by itself"
catch_up
show db2
restart_machine db2
is_active db2 || fail "db2's agent does not start by itself"
catch_up
restart_machine db1
await "db1's server starts by itself" 30 as_postgres db1 psql -XAtd bench -c 'select 1'
is_active db1 || fail "db1's agent does not start by itself"
wait "$load" && fail "the load has ended before its machine went down"
say "transactions so far: $(as_postgres db1 psql -XAtd bench -c 'select count(*) from pgbench_history')"
as_postgres db1 pgbench -n -c 4 -j 2 -T 5 bench >"$folder/pgbench.log" 2>&1
catch_up
show db1
for machine in db1 db2; do
    pid=$(within "$machine" systemctl show walferry --property=MainPID --value)
    say "$machine's agent: $(within "$machine" sed -n 's/^VmHWM:[[:space:]]*/peak memory /p' "/proc/$pid/status")"
done

# ---- the comparison

# Name, rows and an order-free hash of every table.
tables() {
    local machine=$1 table
    for table in pgbench_accounts pgbench_branches pgbench_tellers pgbench_history; do
        as_postgres "$machine" psql -XAtd bench -c "select '$table', count(*), coalesce(sum(('x' || substr(md5(t::text), 1, 15))::bit(60)::bigint), 0) from $table t"
    done
}
expected=$(tables db1)
end=$(as_postgres db1 psql -XAtd bench -c 'select pg_current_wal_flush_lsn()')
await "db2 replays up to $end" 60 follower_has "$end"
pull_the_plug db1
say "db1 is gone for good; its last durable position was $end"

# Debian keeps postgresql.conf elsewhere than in the data directory: bootstrap has written one.
within db2 install -d -o postgres -g postgres /run/postgresql
as_postgres db2 walferry promote --leader-is-dead >"$folder/promote.log" 2>&1 || {
    cat "$folder/promote.log" >&2
    fail "promote"
}
say "promoted: $(tail -n 1 "$folder/promote.log")"
show db2
if [ "${SERVICE_SABOTAGE:-}" = 1 ]; then
    as_postgres db2 psql -Xqd bench -c 'update pgbench_accounts set abalance = abalance + 1 where aid = 4711'
    say "sabotage: one row changed"
fi
compare() {
    local found
    found=$(tables db2)
    if [ "$found" != "$expected" ]; then
        diff <(echo "$expected") <(echo "$found") >&2 || true
        fail "db2 is not what db1 was"
    fi
    sed 's/^/        equal: /; s/|/, rows /; s/|/, hash /' <<<"$found"
}
compare

# The agent has let go of the store. It must not take it again: not at its next start, and not when
# the machine comes up while no server has the store.
within db2 systemctl --no-block restart walferry
await "the agent refuses a promoted store" 30 within db2 systemctl --quiet is-failed walferry
restart_machine db2
sleep 3
state=$(within db2 systemctl show walferry --property=ActiveState,NRestarts,ExecMainStatus | sort | xargs)
[ "$state" = "ActiveState=failed ExecMainStatus=2 NRestarts=0" ] || fail "after the promotion: $state"
say "after a promotion and a boot: $state; $(within db2 journalctl --no-pager --boot --output=cat --unit walferry | grep '^walferry:' | tail -n 1)"
within db2 install -d -o postgres -g postgres /run/postgresql
as_postgres db2 /usr/lib/postgresql/15/bin/pg_ctl -D /var/lib/walferry/store -w -s -l /var/lib/walferry/server.log start ||
    fail "the promoted server does not start again"
compare

# Gone is the program, not the data.
as_postgres db2 /usr/lib/postgresql/15/bin/pg_ctl -D /var/lib/walferry/store -w -s -m fast stop
before=$(within db2 sh -c 'cd /var/lib/walferry && find . -type f -exec sha256sum {} + | sort | sha256sum')
within db2 dpkg --purge walferry >"$folder/dpkg.log" 2>&1 || { cat "$folder/dpkg.log" >&2 && fail "dpkg --purge"; }
after=$(within db2 sh -c 'cd /var/lib/walferry && find . -type f -exec sha256sum {} + | sort | sha256sum')
[ "$before" = "$after" ] || fail "the removal has changed the data"
within db2 test -e /usr/bin/walferry && fail "the program is still there"
say "removed with --purge: archive and store are untouched, $(within db2 du -sh /var/lib/walferry | cut -f 1)"
say "every table is equal"
