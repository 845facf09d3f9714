#!/usr/bin/env bash
# Packs everything that a machine without internet needs into one archive: this repository's files and all its packages as wheels.
#
#   bash launch/offline.sh OUT.tar [cpu|gpu]     on a machine with internet, with the same Python version and platform as the target
#   tar xf OUT.tar && bash rlsys-offline/install.sh      on the target; creates rlsys-offline/.venv there, without any network
#
# Needs what launch/setup.sh needs. Packages that have no wheel (DeepSpeed) are built here. Models and data are not packed: copy their folders.
#
#   PIP_FIND_LINKS=FOLDER   folder of wheels that are on no index, as for launch/setup.sh; with cpu, that of torch is one of them
set -euo pipefail
out="${1:?usage: bash launch/offline.sh OUT.tar [cpu|gpu]}"
device="${2:-gpu}"
case "$device" in cpu | gpu) ;; *) echo "offline: $device: expected cpu or gpu." >&2; exit 2 ;; esac
out="$(cd "$(dirname "$out")" && pwd)/$(basename "$out")"
cd "$(dirname "$0")/.."
python="${RLSYS_PYTHON:-python3}"
uv="$(sed -n 's/^UV_VERSION=/uv==/p' launch/setup.sh)"

folder="$(mktemp -d "$(dirname "$out")/.offline.XXXXXX")"
trap 'rm -rf "$folder"' EXIT
mkdir -p "$folder/rlsys-offline/wheels"
git ls-files -z | tar --create --null --files-from=- | tar --extract --directory "$folder/rlsys-offline"

# Every version is pinned, so no dependency has to be looked up.
"$python" -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$folder/rlsys-offline/wheels" \
    --requirement "launch/requirements-$device.txt" "$uv"

cat > "$folder/rlsys-offline/install.sh" << END
#!/usr/bin/env bash
# Written by launch/offline.sh: set-up from the wheels next to this file, without any network.
set -euo pipefail
cd "\$(dirname "\$0")"
export RLSYS_DEVICE=$device PIP_NO_INDEX=1 PIP_FIND_LINKS="\$PWD/wheels" UV_NO_INDEX=1 UV_OFFLINE=1
exec bash launch/setup.sh
END
tar --create --file "$out.partial" --directory "$folder" rlsys-offline
mv "$out.partial" "$out"
echo "offline: $out, $(du -h "$out" | cut -f1); on the target: tar xf $(basename "$out") && bash rlsys-offline/install.sh" >&2
