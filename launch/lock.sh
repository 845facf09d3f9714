#!/usr/bin/env bash
# For maintainers: writes launch/requirements-cpu.txt anew from pyproject.toml, every transitive pin with it.
# Resolved for the oldest Python; the same versions must have builds for 3.12 and 3.13.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -n "${PIP_FIND_LINKS:-}" ]; then torch=(--find-links "$PIP_FIND_LINKS"); else torch=(--torch-backend cpu); fi
pins="$(mktemp)"
trap 'rm -f "$pins"' EXIT
.venv/bin/uv pip compile pyproject.toml --extra cpu --extra test --overrides launch/overrides.txt --overrides launch/overrides-cpu.txt \
    --python-version 3.11 "${torch[@]}" --no-annotate --no-header --upgrade --quiet --output-file "$pins" > /dev/null
{
    echo "# Every package of the CPU set, pinned. Written by launch/lock.sh; do not edit."
    # These have builds for x86 only, and nothing needs them elsewhere.
    sed -E "s/^((intel-|triton==).*)$/\1 ; platform_machine == 'x86_64'/" "$pins"
} > launch/requirements-cpu.txt.partial
mv launch/requirements-cpu.txt.partial launch/requirements-cpu.txt
