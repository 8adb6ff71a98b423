#!/usr/bin/env bash
# Checks what deploy/ has for Prometheus and Grafana: the rules and their tests,
# the example configuration, and, by the tests of deploy/prometheus, that every
# query parses and asks for metrics that there are. promtool is the machine's, or
# out of Debian's prometheus package, of which nothing is installed or started.
set -euo pipefail
cd "$(dirname "$0")/../.."

promtool=$(command -v promtool || true)
if [[ -z "$promtool" ]]; then
  cache=${XDG_CACHE_HOME:-$HOME/.cache}/fanlight-tools
  promtool=$cache/promtool
  if [[ ! -x "$promtool" ]]; then
    command -v dpkg-deb >/dev/null || { echo 'promtool is missing: install Prometheus' >&2; exit 1; }
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    chmod 755 "$work" # apt reads as another user
    download() { (cd "$work" && apt-get -q -o Acquire::Retries=3 download prometheus >log 2>&1); }
    if ! download; then # perhaps there are no lists of packages yet
      sudo=()
      ((EUID == 0)) || sudo=(sudo -n)
      "${sudo[@]}" apt-get -q -o Acquire::Retries=3 update >"$work/update" 2>&1 && download || { cat "$work/update" "$work/log" >&2; exit 1; }
    fi
    dpkg-deb -x "$work"/prometheus_*.deb "$work/x"
    mkdir -p "$cache"
    cp "$work/x/usr/bin/promtool" "$work/promtool"
    mv "$work/promtool" "$promtool"
  fi
fi

"$promtool" check rules deploy/prometheus/fanlight.rules.yaml
(cd deploy/prometheus && "$promtool" test rules fanlight.rules.test.yaml)
"$promtool" check config --syntax-only deploy/prometheus/prometheus.yaml
PROMTOOL=$promtool go test -count=1 ./deploy/prometheus
