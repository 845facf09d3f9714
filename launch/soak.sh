#!/usr/bin/env bash
# Random faults in short runs of the tiny model until the time is up: bash launch/soak.sh MINUTES (docs/reliability.md)
set -euo pipefail
cd "$(dirname "$0")/.."
exec .venv/bin/python -m launch.faults.soak "$@"
