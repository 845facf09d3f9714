#!/usr/bin/env bash
# For maintainers: regenerates launch/requirements-cpu.txt and launch/requirements-gpu.txt from pyproject.toml, with all transitive pins.
# Resolved for the oldest Python; the same versions must have builds for 3.12 and 3.13. The GPU set has hashes; the CPU set has none, as
# builds of torch differ between its sources (PyTorch's index, or a folder of wheels).
#
#   bash launch/lock.sh              adds and removes packages; keeps the pinned versions that still fit
#   bash launch/lock.sh --upgrade    takes the newest versions
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -n "${PIP_FIND_LINKS:-}" ]; then torch=(--find-links "$PIP_FIND_LINKS"); else torch=(--torch-backend cpu); fi
pins="$(mktemp)"
trap 'rm -f "$pins"' EXIT

lock() {  # lock DEVICE FIRST_LINE [uv's arguments ...]
    .venv/bin/uv pip compile pyproject.toml --extra "$1" --extra demo --extra top --extra test --overrides launch/overrides.txt \
        --python-version 3.11 --constraints launch/constraints.txt --no-annotate --no-header --quiet --output-file "$pins" "${@:3}" > /dev/null
    {
        echo "# $2 Written by launch/lock.sh; do not edit."
        # Available for x86 only, and not needed on other platforms.
        if [ "$1" = cpu ]; then sed -E "s/^((intel-|triton==).*)$/\1 ; platform_machine == 'x86_64'/" "$pins"; else cat "$pins"; fi
    } > "launch/requirements-$1.txt.partial"
    mv "launch/requirements-$1.txt.partial" "launch/requirements-$1.txt"
}

# uv keeps the versions that it finds in its output file.
cp launch/requirements-cpu.txt "$pins"
lock cpu "Every package of the CPU set, pinned." "$@" --overrides launch/overrides-cpu.txt "${torch[@]}"
# From here too, so that packages in both sets have equal versions.
cp launch/requirements-cpu.txt "$pins"
lock gpu "Every package of the GPU set (Linux, x86-64), pinned." \
    --python-platform x86_64-unknown-linux-gnu --generate-hashes
