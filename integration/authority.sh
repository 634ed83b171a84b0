#!/usr/bin/env bash
# Makes a certificate authority for tests, and a certificate for each node named:
#
#   integration/authority.sh DIR db1=10.0.0.1 db2=10.0.0.2,db2.example.org db3
#
# DIR/ca.crt goes to every node as `authority`, DIR/NODE.crt and DIR/NODE.key to that node alone. A
# certificate has the node's name and the addresses after the "=". An authority that is in DIR
# already is used again. ca.key signs for anybody: keep it off the nodes, and use one of your own
# for anything but tests.
set -euo pipefail

if [ $# -lt 2 ]; then
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
command -v openssl >/dev/null || { echo "openssl is missing: apt-get install openssl" >&2; exit 1; }
directory=$1
shift
mkdir -p "$directory"
cd "$directory"
umask 077
days=${AUTHORITY_DAYS:-30}

if [ ! -e ca.key ]; then
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days "$days" \
        -keyout ca.key -out ca.crt -subj "/CN=walferry test authority" \
        -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign" 2>/dev/null
    chmod 644 ca.crt
fi

for node in "$@"; do
    name=${node%%=*}
    names="DNS:$name"
    if [ "$node" != "$name" ]; then
        IFS=, read -ra addresses <<<"${node#*=}"
        for address in "${addresses[@]}"; do
            case $address in
                *:* | [0-9]*.[0-9]*.[0-9]*.[0-9]*) names+=",IP:$address" ;;
                *) names+=",DNS:$address" ;;
            esac
        done
    fi
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout "$name.key.new" \
        -out "$name.csr" -subj "/CN=$name" 2>/dev/null
    openssl x509 -req -in "$name.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days "$days" \
        -out "$name.crt.new" -extfile <(printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth,clientAuth\n' "$names") 2>/dev/null
    chmod 644 "$name.crt.new"
    mv "$name.key.new" "$name.key"
    mv "$name.crt.new" "$name.crt"
    rm "$name.csr"
done
