#!/usr/bin/env bash
# Checks that what is generated and committed is what would be generated now:
# Go from proto/, the web build, go.mod. It generates elsewhere, from a copy, so
# that neither the tree nor what lies about in it matters.
set -euo pipefail
cd "$(dirname "$0")/../.."
buf=$PWD/internal/tools/node_modules/.bin/buf
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
failed=0

# same WHAT COMMITTED GENERATED COMMAND
same() {
  if diff -r "$2" "$3" >"$tmp/diff"; then
    echo "up to date: $1"
  else
    head -n 40 "$tmp/diff" >&2
    echo "out of date: $1; run \"$4\" and commit" >&2
    failed=1
  fi
}

# Only the generated files, and all of them: one whose source is gone is drift.
mkdir "$tmp/committed"
find proto -name '*.pb.go' -exec cp --parents -t "$tmp/committed" {} +
"$buf" generate -o "$tmp/generated"
same "proto/" "$tmp/committed/proto" "$tmp/generated/proto" "make generate"

# Without node_modules, which npm ci makes anew, and without dist.
mkdir "$tmp/web"
tar -C signaling/web --exclude ./node_modules --exclude ./dist -cf - . | tar -C "$tmp/web" -xf -
(cd "$tmp/web" && npm ci --no-audit --no-fund --loglevel=error && npm run build) >"$tmp/web.log" 2>&1 || {
  cat "$tmp/web.log" >&2
  exit 1
}
same "signaling/web/dist" signaling/web/dist "$tmp/web/dist" "make web"

if go mod tidy -diff >"$tmp/tidy" 2>"$tmp/tidy.log"; then
  echo "up to date: go.mod"
else
  { tail -n 5 "$tmp/tidy.log"; head -n 30 "$tmp/tidy"; } >&2
  echo "out of date: go.mod or go.sum; run \"go mod tidy\" and commit" >&2
  failed=1
fi
exit "$failed"
