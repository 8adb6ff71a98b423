#!/usr/bin/env bash
# Runs every fuzz target for a while: fuzz.sh 30s
set -euo pipefail
cd "$(dirname "$0")/../.."
time=${1:-30s}
grep -rlE '^func Fuzz' --include='*_test.go' --exclude-dir=node_modules . | sort | while read -r file; do
  grep -oE '^func Fuzz[A-Za-z0-9_]+' "$file" | while read -r _ target; do
    echo "== $(dirname "$file") $target"
    go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "$(dirname "$file")" </dev/null
  done
done
