#!/usr/bin/env bash
# Installs the Debian packages named, or those that the tests need, if any is
# missing: a C compiler for the race detector, cameras by others
# (gst-rtsp-server, VLC), ffmpeg, WebRTC clients by others (browsers, webrtcbin,
# aiortc), and what makes networks and disks fail.
set -euo pipefail

exec 9<"${BASH_SOURCE[0]}"
flock 9 # one at a time

packages=("$@")
((${#packages[@]})) || packages=(
  # go test -race
  gcc libc6-dev
  # cameras, and what makes their pictures
  ffmpeg fonts-dejavu-core
  python3 python3-gi gir1.2-gst-rtsp-server-1.0
  gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-bad gstreamer1.0-plugins-ugly
  gstreamer1.0-libav # AAC and G.722
  gstreamer1.0-x # timeoverlay
  vlc-bin vlc-plugin-base
  libxml2-utils # xmllint: ONVIF requests against their schema
  util-linux # setpriv, unshare
  iproute2 iptables ethtool # hosts that are cut off, packets that are lost
  mount e2fsprogs # disks that are full, or stand still
  # who watches; aiortc and webrtcbin with what they need
  chromium firefox-esr
  python3-aiortc
  gir1.2-gst-plugins-bad-1.0 gstreamer1.0-nice
)

missing=()
for p in "${packages[@]}"; do
  # A package that was removed, but for its configuration, is not installed.
  [[ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null || true)" == installed ]] || missing+=("$p")
done
if ((${#missing[@]} == 0)); then
  echo "debian packages: all there"
  exit 0
fi

echo "debian packages: installing ${missing[*]}"
sudo=()
if ((EUID != 0)); then
  command -v sudo >/dev/null || { echo "not root, and no sudo: install ${missing[*]}" >&2; exit 1; }
  sudo=(sudo -n)
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt() { "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=180 -o Acquire::Retries=3 -q "$@" </dev/null >>"$log" 2>&1; }
if ! { apt update && apt install -y --no-install-recommends "${missing[@]}"; }; then
  tail -n 40 "$log" >&2
  exit 1
fi
