#!/usr/bin/env bash
# Set-up, then the main job with its default settings on a real model. Arguments replace settings: bash launch/quickstart.sh rl.steps=5
set -euo pipefail
bash "$(dirname "$0")/setup.sh"
cd "$(dirname "$0")/.."
exec .venv/bin/rlsys train launch/configs/quickstart.yaml "$@"
