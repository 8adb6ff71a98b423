#!/usr/bin/env bash
# Builds the container image with buildah around a binary that is built here,
# for other base images cannot be had everywhere, and runs it with podman:
# without network, without a writable root, without a capability. Needs root.
set -euo pipefail
cd "$(dirname "$0")/../../.."
if ((EUID != 0)); then
  echo "image: not tried, for buildah and podman need root here"
  exit 0
fi
internal/tools/apt.sh buildah podman runc

tmp=$(mktemp -d)
store=(--storage-driver vfs --root "$tmp/storage" --runroot "$tmp/run")
podman() { command podman "${store[@]}" --runtime runc --cgroup-manager cgroupfs --log-level error "$@"; }
container=
clean() {
  [[ -z "$container" ]] || podman rm -f -t 0 "$container" >/dev/null 2>&1 || true
  buildah "${store[@]}" rm -a >/dev/null 2>&1 || true
  rm -rf "$tmp" bin/image
}
trap clean EXIT

mkdir -p bin/image/data
CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '-s -w -X main.version=image-test' -o bin/image/fanlight ./cmd/fanlight
cp /etc/ssl/certs/ca-certificates.crt bin/image/
buildah "${store[@]}" bud -q --isolation chroot --ignorefile deploy/Dockerfile.dockerignore -f deploy/Dockerfile \
  --build-arg BINARY=prebuilt --build-arg VERSION=image-test --target fanlight -t fanlight:test . >"$tmp/bud.log" 2>&1 || {
  cat "$tmp/bud.log" >&2
  exit 1
}

# The sizes of files and processes that this machine allows are smaller than
# podman's own defaults.
hardened=(--network none --read-only --cap-drop all --security-opt no-new-privileges --ulimit nofile=1024:1024 --ulimit nproc=1024:1024)
version=$(podman run --rm "${hardened[@]}" localhost/fanlight:test version)
[[ "$version" == "fanlight image-test go"* ]] || { echo "version says: $version" >&2; exit 1; }

# The owner of the image's data directory is the user: a volume there is taken
# over in the same way.
container=$(podman run -d "${hardened[@]}" --volume fanlight-data:/var/lib/fanlight \
  -e FANLIGHT_GRPC=127.0.0.1:9090 -e FANLIGHT_HTTP=127.0.0.1:8080 localhost/fanlight:test up --data=/var/lib/fanlight --demo=1)
healthy=
for _ in {1..50}; do
  if podman exec "$container" /fanlight health >/dev/null 2>&1; then
    healthy=yes
    break
  fi
  sleep 0.2
done
if [[ -z "$healthy" ]]; then
  podman logs "$container" >&2
  echo "the container does not become healthy" >&2
  exit 1
fi
live=
for _ in {1..50}; do
  if podman exec "$container" /fanlight camera list 2>/dev/null | grep -q 'demo-0 *live'; then
    live=yes
    break
  fi
  sleep 0.2
done
[[ -n "$live" ]] || { podman logs "$container" >&2; echo "the demonstration's camera is not live" >&2; exit 1; }
user=$(awk '/^Uid:/ {print $2}' "/proc/$(podman inspect -f '{{.State.Pid}}' "$container")/status")
[[ "$user" == 65532 ]] || { echo "it runs as $user" >&2; exit 1; }
podman stop -t 20 "$container" >/dev/null
code=$(podman inspect -f '{{.State.ExitCode}}' "$container")
[[ "$code" == 0 ]] || { podman logs "$container" >&2; echo "it stops with $code" >&2; exit 1; }
echo "image: built, healthy, live, run by $user, stopped in order"
