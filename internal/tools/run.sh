#!/usr/bin/env bash
# Runs "fanlight up" with two simulated cameras, or with those whose URLs are in
# CAMERA_URL, and leaves with Ctrl-C: run.sh bin/fanlight
set -euo pipefail
fanlight=$1
cameras=${CAMERA_URL:-}
unset CAMERA_URL # the server need not have it

echo 'Open the page below in a browser; Ctrl-C ends it.'
if [[ -z "$cameras" ]]; then
  exec "$fanlight" up --demo 2 --log-level warn
fi

# The cameras are added as anybody would add them, once the API is there.
output=$(mktemp -u)
mkfifo "$output"
"$fanlight" up --log-level warn >"$output" &
server=$!
trap 'kill "$server" 2>/dev/null || true; wait "$server" || true; rm -f "$output"' EXIT
trap 'exit 130' INT TERM
exec 3<"$output"
address=
while [[ -z "$address" ]] && IFS= read -r line <&3; do
  echo "$line"
  [[ "$line" =~ ^api\ +(.*)$ ]] && address=${BASH_REMATCH[1]}
done
[[ -n "$address" ]] || { wait "$server"; exit 1; }

n=0
set -f # "?" and "*" are parts of URLs here
for url in $cameras; do
  name=camera-$n
  n=$((n + 1))
  command=add
  if "$fanlight" camera get "$name" --server "$address" >/dev/null 2>&1; then
    command=update
  fi
  # Arguments can be read by everybody on this machine, and the URL may have a
  # password in it: the command takes it from its input, and out of the URL.
  printf '%s\n' "$url" | "$fanlight" camera "$command" "$name" --url - --server "$address"
done
wait "$server"
