#!/usr/bin/env bash
# What takes too long for "make test", two hours or so. All of it runs, whatever
# fails; the end says what did.
set -uo pipefail
cd "$(dirname "$0")/../.."
failed=()

step() {
  local name=$1 start=$SECONDS
  shift
  echo "=== $name"
  if "$@" </dev/null; then
    echo "=== $name: $((SECONDS - start)) s"
  else
    echo "=== FAILED: $name" >&2
    failed+=("$name")
  fi
}

step "build" make --no-print-directory build
step "fuzz" make --no-print-directory fuzz FUZZTIME=60s
step "loss" make --no-print-directory loss
step "joins" bin/fanlight bench join
step "joins in a browser" make --no-print-directory join
step "soak" make --no-print-directory soak

if ((${#failed[@]})); then
  echo "=== FAILED: ${failed[*]}" >&2
  exit 1
fi
echo "=== PASSED in $SECONDS s"
