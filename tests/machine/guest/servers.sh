#!/bin/bash
# An engine and the units of a second server, for tests/machine/test_servers.py:
#   servers.sh files    certificates, as in docs/FLEET.md: a CA of the engine's own, the robots' CA for the peers
#   servers.sh engine   starts etcd
#   servers.sh units    the second server's units: the first one's, with names, ports and files of its own
set -euo pipefail

kept=/srv/servers

issue() {
    openssl x509 -req -in request -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -extfile uses -out "$1"
}

files() {
    [[ ! -e $kept/two.key ]] || return 0
    install -d -m 755 $kept
    cd $kept
    local new=(-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes)
    openssl req -x509 "${new[@]}" -days 30 -subj '/CN=Engine CA' -keyout ca.key -out ca.crt
    openssl req -new "${new[@]}" -subj '/CN=localhost' -keyout etcd.key -out request
    printf 'subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n' >uses
    issue etcd.crt
    openssl req -new "${new[@]}" -subj '/O=Shadow' -keyout client.key -out request
    printf 'extendedKeyUsage=clientAuth\n' >uses
    issue client.crt
    for name in one two; do
        shadow-ca --dir /srv/fleet peer $name --out .
        mv peer.crt $name.crt
        mv peer.key $name.key
    done
}

engine() {
    systemd-run --quiet --unit=etcd-test --property=Type=notify --property=RuntimeDirectory=etcd-test etcd \
        --data-dir /run/etcd-test/data --listen-peer-urls http://127.0.0.1:2380 \
        --listen-client-urls https://127.0.0.1:2379 --advertise-client-urls https://127.0.0.1:2379 \
        --cert-file $kept/etcd.crt --key-file $kept/etcd.key --trusted-ca-file $kept/ca.crt --client-cert-auth
}

units() {
    cd /usr/lib/systemd/system
    for kind in .service .socket -peer.socket; do
        sed -e 's/shadow-server\(-peer\)\?\.so/shadow-server-two\1.so/' \
            -e 's/=shadow-server\.service/=shadow-server-two.service/; s/ shadow-server-api.socket//' \
            -e 's/=2222$/=2225/; s/=2223$/=2224/; s,tunnel/server.env,tunnel/two.env,' \
            -e 's,tunnel/peer.key,tunnel/two.key,; s/^RuntimeDirectory=.*/&-two/; s,=%t/shadow-tunnel$,&-two,' \
            "shadow-server$kind" >"/etc/systemd/system/shadow-server-two$kind"
    done
    systemctl daemon-reload
}

"$1"
