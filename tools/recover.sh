#!/bin/sh
# Waits for a device's standby with nothing but cat, echo and sleep, and recovers it.
usage() {
    cat <<'USAGE'
usage: recover.sh MNT DEVICE [PATH]

Waits until DEVICE (ploop0, dm-0) of the tree at MNT is in standby. Then opens its top delta again, or puts the image at
PATH in its place; once in a second until that succeeds, RECOVER_TRIES times at most (60).

exit code: 0 the device processes requests again, 1 it does not, 2 usage
example:   recover.sh /mnt/ploop ploop0 /other/store/top.hds
USAGE
}
case ${1:-} in -h | --help) usage; exit 0 ;; esac
case $# in 2 | 3) ;; *) usage >&2; exit 2 ;; esac

sys=$1/sys/block/$2 device=$2 path=${3:-} tries=${RECOVER_TRIES:-60}
say() { echo "recover: $device: $*"; }
standby() { cat "$sys/queue/standby"; }
recover() { if [ "$path" ]; then echo "$path" >"$sys/ploopfs/replace_delta"; else echo 1 >"$sys/ploopfs/reopen"; fi; }

state=$(standby) || exit 1
say "standby is $state"
while [ "$state" = off ]; do
    sleep 1
    state=$(standby) || exit 1
done
[ "$state" = on ] || exit 1
say "in standby: $(cat "$sys/ploopfs/standby_reason")"
while [ "$(standby)" = on ] && [ "$tries" -gt 0 ]; do
    recover 2>/dev/null || { say "not yet: $(cat "$sys/ploopfs/last_error")"; tries=$((tries - 1)); sleep 1; }
done
state=$(standby) || exit 1
say "standby is $state, generation $(cat "$sys/ploopfs/generation")"
[ "$state" = off ]
