#!/bin/sh
# Makes the certificates and keys of compose.yaml, each process' into a volume
# of its own. Runs at every "docker compose up": authorities and secrets are
# made once and stay, certificates are issued anew.
#
#   /authority  the authorities' keys; mounted nowhere else
#   /keys/NAME  what one process is given
#
# WEB_HOSTS are the names and addresses that browsers use, with commas.
set -eu
umask 077
owner=65532:65532

authority() {
  [ -f "/authority/$1/ca.pem" ] || fanlight certs init --dir "/authority/$1" --common-name "Fanlight $1"
}

# issue AUTHORITY ROLE NAME HOSTS VOLUME FILE
issue() {
  dir=/tmp/issued
  rm -rf "$dir"
  fanlight certs issue --dir "/authority/$1" --role "$2" --name "$3" ${4:+--host "$4"} --out "$dir"
  # The key first: who sees the new certificate finds its key.
  put "$dir/$2-$3-key.pem" "/keys/$5/$6-key.pem"
  put "$dir/$2-$3.pem" "/keys/$5/$6.pem"
}

# put FROM TO replaces a file whole.
put() {
  mkdir -p "$(dirname "$2")"
  cp "$1" "$2.new"
  chown "$owner" "$2.new"
  mv "$2.new" "$2"
}

# secret FILE BYTES: random ones, made once.
secret() {
  [ -s "$1" ] && return
  head -c "$2" /dev/urandom >"$1.new"
  mv "$1.new" "$1"
}

# The fleet's processes know each other by the first, the control planes' etcd
# by the second, and browsers the load balancer by the third: a key of one opens
# nothing of the others.
authority fleet
authority peers
authority web

# The passwords of the cameras are sealed under it: keep a copy elsewhere.
secret /authority/secret.key 32
# Signs viewers' tokens: 32 random bytes, written as text.
[ -s /authority/viewer.key ] || {
  head -c 32 /dev/urandom | base64 >/authority/viewer.key.new
  mv /authority/viewer.key.new /authority/viewer.key
}

for n in 1 2 3; do
  issue fleet controlplane "controlplane-$n" "controlplane-$n" "controlplane-$n" tls
  issue peers controlplane "controlplane-$n" "controlplane-$n.peers" "controlplane-$n" peer
  put /authority/fleet/ca.pem "/keys/controlplane-$n/ca.pem"
  put /authority/peers/ca.pem "/keys/controlplane-$n/peer-ca.pem"
  put /authority/secret.key "/keys/controlplane-$n/secret.key"
done
for n in 1 2; do
  issue fleet node "medianode-$n" "medianode-$n" "medianode-$n" tls
  put /authority/fleet/ca.pem "/keys/medianode-$n/ca.pem"
  issue fleet gateway "gateway-$n" "gateway-$n" "gateway-$n" tls
  put /authority/fleet/ca.pem "/keys/gateway-$n/ca.pem"
  put /authority/viewer.key "/keys/gateway-$n/viewer.key"
done

# What browsers see. "gateway" is a role of the fleet's, but this authority is
# none that the fleet trusts. To use a certificate of your own, see README.md.
issue web gateway loadbalancer "${WEB_HOSTS:-localhost,127.0.0.1}" loadbalancer web
cat /keys/loadbalancer/web.pem /keys/loadbalancer/web-key.pem >/tmp/both.pem
put /tmp/both.pem /keys/loadbalancer/both.pem
put /authority/fleet/ca.pem /keys/loadbalancer/ca.pem

issue fleet operator admin "" admin tls
put /authority/fleet/ca.pem /keys/admin/ca.pem
put /authority/viewer.key /keys/admin/viewer.key
put /authority/web/ca.pem /keys/admin/web-ca.pem

# The volumes begin as root's.
chown "$owner" /keys/*
echo "certificates and keys are in place"
