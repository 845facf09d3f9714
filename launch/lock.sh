#!/usr/bin/env bash
# For maintainers: writes launch/requirements-cpu.txt and launch/requirements-gpu.txt anew from pyproject.toml, every transitive pin included.
# Resolved for the oldest Python; the same versions must have builds for 3.12 and 3.13. The GPU set has hashes. The CPU set has none, as
# its torch comes from different places (PyTorch's index, or a folder of wheels) with different builds.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -n "${PIP_FIND_LINKS:-}" ]; then torch=(--find-links "$PIP_FIND_LINKS"); else torch=(--torch-backend cpu); fi
pins="$(mktemp)"
trap 'rm -f "$pins"' EXIT

lock() {  # lock DEVICE FIRST_LINE [uv's arguments ...]
    .venv/bin/uv pip compile pyproject.toml --extra "$1" --extra demo --extra test --overrides launch/overrides.txt --python-version 3.11 \
        --constraints launch/constraints.txt --no-annotate --no-header --quiet --output-file "$pins" "${@:3}" > /dev/null
    {
        echo "# $2 Written by launch/lock.sh; do not edit."
        # These have builds for x86 only, and nothing needs them elsewhere.
        if [ "$1" = cpu ]; then sed -E "s/^((intel-|triton==).*)$/\1 ; platform_machine == 'x86_64'/" "$pins"; else cat "$pins"; fi
    } > "launch/requirements-$1.txt.partial"
    mv "launch/requirements-$1.txt.partial" "launch/requirements-$1.txt"
}

lock cpu "Every package of the CPU set, pinned." --upgrade --overrides launch/overrides-cpu.txt "${torch[@]}"
# uv keeps the versions that it finds in the output file wherever it can: both sets have the same of what they share.
cp launch/requirements-cpu.txt "$pins"
lock gpu "Every package of the GPU set (Linux, x86-64), pinned." \
    --python-platform x86_64-unknown-linux-gnu --generate-hashes
