#!/usr/bin/env bash
# Everything that CI checks, in the order of what fails fastest; the first
# failure ends it. Nothing is taken from a cache of test results, and no tool
# from the machine but Go, a Node that is new enough, and what Debian has.
set -euo pipefail
cd "$(dirname "$0")/../.."
began=$SECONDS

step() {
  local name=$1 start=$SECONDS
  shift
  echo "=== $name"
  "$@" </dev/null || {
    echo "=== FAILED: $name" >&2
    exit 1
  }
  echo "=== $name: $((SECONDS - start)) s"
}

step "what the tests need" make --no-print-directory deps
step "generated code" make --no-print-directory drift
step "breaking changes" internal/tools/breaking.sh
step "lint" make --no-print-directory lint-only
step "prometheus" internal/tools/promtool.sh
step "deploy" make --no-print-directory deploy-test
step "web" make --no-print-directory web-test-only
step "unit and integration" make --no-print-directory unit
step "end to end" make --no-print-directory e2e
echo "=== PASSED in $((SECONDS - began)) s"
