#!/usr/bin/env bash
# Creates .venv in the repository root with pinned versions of all dependencies, including those of the tests.
#
#   bash launch/setup.sh
#
# Needs Python 3.11 to 3.13 with pip, and a C compiler. Does nothing (in well under a second) if nothing changed. Safe to
# interrupt and to run concurrently: .venv is complete only once its stamp is written, and is recreated otherwise.
#
#   RLSYS_PYTHON=/path/to/python   which Python to use (default: the first suitable one on PATH)
#   RLSYS_DEVICE=cpu|gpu           which set to install (default: gpu where nvidia-smi works, otherwise cpu)
#   PIP_FIND_LINKS=FOLDER          folder of wheels that are on no index, as for pip
set -euo pipefail
cd "$(dirname "$0")/.."
UV_VERSION=0.13.8
STAMP=.venv/.rlsys-stamp

say() { echo "setup: $*" >&2; }
fail() { say "$*"; exit 1; }

device="${RLSYS_DEVICE:-}"
case "$device" in
    cpu | gpu) ;;
    "") if command -v nvidia-smi > /dev/null && nvidia-smi > /dev/null 2>&1; then device=gpu; else device=cpu; fi ;;
    *) fail "RLSYS_DEVICE=$device: expected cpu or gpu." ;;
esac
requirements="launch/requirements-$device.txt"
if [ "$device" = gpu ]; then
    # A note only: nothing that is installed can mend it, and the rest of the set-up is of use.
    driver="$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2> /dev/null | head -n 1 || true)"
    case "${driver%%.*}" in
        "" | *[!0-9]*) ;;
        *) [ "${driver%%.*}" -ge 580 ] || say "NVIDIA's driver is $driver; the pinned torch needs 580 or newer. Update the driver." ;;
    esac
fi

# One set-up at a time: a second one waits here, then has nothing to do.
exec 9< launch
if command -v flock > /dev/null; then
    flock --nonblock 9 || { say "another set-up of this folder is running; waiting for it."; flock 9; }
fi

# What .venv was created from. Virtual environments contain their own path, so a moved one is recreated too.
place="$PWD $device"
hash="$(cat "$requirements" launch/overrides*.txt launch/setup.sh pyproject.toml | cksum)"
if [ -f "$STAMP" ] && [ "$(sed -n 1p "$STAMP")" = "$place" ] && .venv/bin/python -c "" 2> /dev/null; then
    [ "$(sed -n 2p "$STAMP")" = "$hash" ] && exit 0
    say "the pinned versions changed; updating .venv."
    rm -f "$STAMP"
else
    if [ -e .venv ]; then
        [ -z "$(ls -A .venv)" ] || [ -f .venv/pyvenv.cfg ] || fail ".venv exists but is not a virtual environment; move it away."
        say ".venv is incomplete or was moved; recreating it."
        rm -rf .venv
    fi
    python=""
    names=(python3 python3.11 python3.12 python3.13 python)
    [ -z "${RLSYS_PYTHON:-}" ] || names=("$RLSYS_PYTHON")
    for name in "${names[@]}"; do
        # Run it, as a name on PATH may be a shim for a version that is not installed.
        if "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2> /dev/null; then
            python="$name"
            break
        fi
    done
    [ -n "$python" ] || fail "no Python 3.11, 3.12 or 3.13 found (looked for: ${names[*]}). Install one, or set RLSYS_PYTHON=/path/to/python."
    "$python" -c "import venv, ensurepip" 2> /dev/null \
        || fail "$python cannot create virtual environments (no venv or ensurepip); on Debian and Ubuntu: apt install python3-venv."
    say "creating .venv with $("$python" --version)."
    "$python" -m venv .venv
fi
command -v cc > /dev/null || command -v gcc > /dev/null || command -v clang > /dev/null \
    || say "no C compiler found (cc, gcc, clang); parts that are compiled on first use need one."

.venv/bin/python -m pip install --quiet --quiet --disable-pip-version-check "uv==$UV_VERSION"
uv() { VIRTUAL_ENV="$PWD/.venv" .venv/bin/uv "$@"; }

# uv ignores pip's settings: pass on the two that determine where wheels come from.
links="${PIP_FIND_LINKS:-$(.venv/bin/python -m pip config get global.find-links 2> /dev/null || true)}"
sources=(--overrides launch/overrides.txt)
for link in $links; do sources+=(--find-links "$link"); done
[ -z "${PIP_INDEX_URL:-}" ] || export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$PIP_INDEX_URL}"

if [ "$device" = cpu ]; then
    # The package index has torch for CUDA only. The CPU build is in a folder of wheels, or on PyTorch's own index,
    # which uv knows.
    tag="$(.venv/bin/python -c 'import sys; print("cp%d%d" % sys.version_info[:2])')"
    version="$(sed -n 's/^torch==\([^ ;]*\).*/\1/p' "$requirements")"
    at_hand=no
    for link in $links; do
        if [ -n "$(find "${link#file://}" -maxdepth 1 -name "torch-$version-$tag-*.whl" 2> /dev/null)" ]; then at_hand=yes; fi
    done
    [ "$at_hand" = yes ] || sources+=(--torch-backend cpu)
    sources+=(--overrides launch/overrides-cpu.txt)
fi
say "installing the packages of $requirements; the first time takes a few minutes."
# Compile bytecode now: with PYTHONDONTWRITEBYTECODE set, every process would otherwise compile its imports.
uv pip install --quiet --compile-bytecode "${sources[@]}" --requirements "$requirements"
uv pip install --quiet --no-deps --no-build-isolation --editable .
printf '%s\n%s\n' "$place" "$hash" > "$STAMP.partial"
mv "$STAMP.partial" "$STAMP"
say "done: .venv is ready ($device). Next: bash launch/quickstart.sh, or .venv/bin/rlsys --help."
