#!/usr/bin/env bash
# Checks that proto/ breaks nobody who was built from the commit before.
set -euo pipefail
cd "$(dirname "$0")/../.."
buf=$PWD/internal/tools/node_modules/.bin/buf
git() { command git -c safe.directory='*' "$@"; }
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

if ! git rev-parse -q --verify HEAD~1:proto >/dev/null 2>&1 || ! git rev-parse -q --verify HEAD~1:buf.yaml >/dev/null 2>&1; then
  echo "breaking changes: not checked, for there is no commit before with a proto/"
  exit 0
fi
git archive HEAD~1 proto buf.yaml | tar -C "$tmp" -xf -
"$buf" breaking --against "$tmp"
echo "breaking changes: none since $(git rev-parse --short HEAD~1)"
