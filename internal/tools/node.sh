#!/usr/bin/env bash
# Sees to a Node and an npm that the web build and its tests can use. Where the
# machine has none, or one that is too old, as Debian's is, Node comes from npm:
# into bin/node, which the Makefile puts into PATH before everything else.
set -euo pipefail
cd "$(dirname "$0")/../.."
dir=$PWD/bin/node
export PATH="$dir/node_modules/.bin:$PATH"

fits() {
  command -v npm >/dev/null && node -e '
    const [major, minor] = process.versions.node.split(".").map(Number);
    process.exit(major > 20 || (major === 20 && minor >= 19) ? 0 : 1)' 2>/dev/null
}

if fits; then
  echo "node: $(node --version), npm $(npm --version)"
  exit 0
fi
if ! command -v npm >/dev/null; then
  internal/tools/apt.sh nodejs npm
fi
case $(uname -m) in
  x86_64) arch=x64 ;;
  aarch64) arch=arm64 ;;
  *) echo "node: install version 20.19 or later; there is none from npm for $(uname -m)" >&2; exit 1 ;;
esac
mkdir -p "$dir"
echo '{"private": true}' >"$dir/package.json"
(cd "$dir" && npm install --no-audit --no-fund --loglevel=error "node-linux-$arch@24.21.0" npm@11.19.1)
hash -r
fits || { echo "node: $(node --version) is too old, and a newer one could not be installed" >&2; exit 1; }
echo "node: $(node --version), npm $(npm --version), from npm"
