#!/usr/bin/env bash
# The same by hand, for CI systems whose steps are several commands: acquire, use, release in a trap.
# Needs TMS_TARGET (HOST:PORT or a saved target). Prints nothing but what the command prints.
set -euo pipefail

lease=$(tmsctl lease create --model digits=model://models/digits --renewal on_activity --hold 10m --window 10m \
  --max-lifetime 2h --wait --output name)
trap 'tmsctl lease release "$lease" >/dev/null' EXIT

# From outside of the cluster: local ports that lead to the lease. Inside, its Service does.
tmsctl lease connect "$lease" --http 8000 --grpc 8001 &
tunnel=$!
trap 'kill "$tunnel" 2>/dev/null || true; tmsctl lease release "$lease" >/dev/null' EXIT

curl --silent --show-error --retry 20 --retry-connrefused --retry-delay 1 --fail http://127.0.0.1:8000/v2/models/digits/ready
TMS_HTTP_URL=http://127.0.0.1:8000 "$@"
