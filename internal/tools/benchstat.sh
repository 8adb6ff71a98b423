#!/usr/bin/env bash
# Compares the benchmarks of the packet path with those of another commit:
# benchstat.sh HEAD~1. Both run in turns, for the machine is not the same from one
# minute to the next. A benchmark that only one of them has is listed alone.
set -euo pipefail
cd "$(dirname "$0")/../.."
base=${1:-HEAD~1}
count=${COUNT:-6}
packages=(./medianode/stream ./medianode/session ./medianode/udp)
benchmarks=${BENCH:-'^Benchmark(Write|Deliver|Resend|Open|Seal|Batch)$'}

work=$(mktemp -d)
trap 'git worktree remove --force "$work/base" >/dev/null 2>&1 || true; rm -rf "$work"' EXIT
git worktree add --quiet --detach "$work/base" "$base"

for side in base here; do
  tree=$PWD
  [ "$side" = base ] && tree=$work/base
  for p in "${packages[@]}"; do
    [ -d "$tree/$p" ] || continue
    (cd "$tree" && go test -c -o "$work/$side-$(basename "$p").test" "$p")
  done
done
for ((i = 0; i < count; i++)); do
  for p in "${packages[@]}"; do
    for side in base here; do
      tree=$PWD
      [ "$side" = base ] && tree=$work/base
      [ -x "$work/$side-$(basename "$p").test" ] || continue
      echo "round $((i + 1)) of $count: $p, $side" >&2
      (cd "$tree/$p" && "$work/$side-$(basename "$p").test" -test.run '^$' -test.bench "$benchmarks" -test.benchmem -test.benchtime 200ms </dev/null) >>"$work/$side.txt"
    done
  done
done
(cd internal/tools && go tool benchstat "$base=$work/base.txt" "here=$work/here.txt")
