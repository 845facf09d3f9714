#!/usr/bin/env bash
# Several machines on this one: network, mount, process and host-name namespaces behind one bridge. Needs root, iproute2, util-linux.
#
#   bash launch/namespaces.sh SHARED
#
# Reads commands from stdin, one a line, until its end, and answers each with one line:
#
#   add            start a machine: prints its number, its address, and a process to enter it by
#   cut I          pull the plug of machine I: first the network, so that no other machine is told, then all its processes
#
# `nsenter --all --target PROCESS COMMAND...` runs a command on a machine. Each has /tmp, /dev/shm, /proc and a loopback of its own, no
# route to the world, a host name that means the loopback (as in Debian's /etc/hosts), the installation (.venv), but nothing else of this
# checkout. SHARED is /tmp/shared on all of them. `nsenter --net --target THIS_PROCESS COMMAND...` runs a command here, as on a
# workstation in the same network. `tc qdisc replace dev eth0 root tbf rate 100mbit burst 256kb latency 50ms` limits what a machine sends.
#
# Nothing outlives this process, however it ends: the machines die with it, and the kernel removes namespaces, mounts and links.
set -euo pipefail
# The bridge gets a network namespace, too: this process's.
[ -n "${RLSYS_BRIDGE:-}" ] || RLSYS_BRIDGE=1 exec unshare --net bash "$0" "$@"

shared="$(realpath "$1")"
checkout="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="$(realpath "$checkout/.venv")"
network=10.77.0
machines=()

# The first process of a machine, after its namespaces were made.
export MACHINE_SETUP='
    set -euo pipefail
    hostname "machine-$number"
    mount -t tmpfs -o size=75% tmpfs /dev/shm
    mount -t tmpfs -o mode=1777 tmpfs /mnt
    mkdir -p /mnt/shared /mnt/home /mnt/venv
    mount --bind "$shared" /mnt/shared
    mount --bind "$venv" /mnt/venv
    for folder in "$checkout" "$(dirname "$venv")"; do mount -t tmpfs tmpfs "$folder"; done
    mkdir -p "$venv"
    mount --bind /mnt/venv "$venv"
    [ -e "$checkout/.venv" ] || ln -s "$venv" "$checkout/.venv"
    mount --rbind /mnt /tmp
    printf "127.0.0.1 localhost\n127.0.1.1 machine-%s\n" "$number" > /tmp/hosts
    mount --bind /tmp/hosts /etc/hosts
    ip link set lo up
    touch /tmp/ready
    sleep infinity & while :; do wait; done'

add() {
    local number=$((${#machines[@]} + 1)) parent process=""
    export number shared checkout venv
    setpriv --pdeathsig KILL unshare --net --mount --uts --ipc --pid --mount-proc --fork --kill-child=KILL \
        bash -c "$MACHINE_SETUP" < /dev/null >&2 &
    parent=$!
    until [ -n "$process" ] && nsenter --all --target "$process" test -e /tmp/ready; do
        kill -0 "$parent" || exit 1
        sleep 0.1
        process="$(tr -d ' ' < "/proc/$parent/task/$parent/children")"
    done
    ip link add "machine-$number" type veth peer name eth0 netns "$process"
    ip link set "machine-$number" master bridge up
    nsenter --net --target "$process" ip address add "$network.$number/24" dev eth0
    nsenter --net --target "$process" ip link set eth0 up
    machines+=("$process")
    echo "$number $network.$number $process"
}

cut() {
    ip link set "machine-$1" down
    kill -KILL "${machines[$1 - 1]}"
    echo "$1 cut"
}

ip link add bridge type bridge
ip link set bridge up
ip link set lo up
ip address add "$network.254/24" dev bridge
while read -r command arguments; do
    case "$command" in
        # shellcheck disable=SC2086
        add | cut) "$command" $arguments ;;
        *) echo "error: $command: expected add or cut I" ;;
    esac
done
