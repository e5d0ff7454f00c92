#!/bin/busybox sh
# PID 1 of the tiny guest. What it does is chosen on the kernel's command line, by any number of words:
#
#   tiny=ignore-button        let every press of the power button pass
#   tiny=slow-poweroff=N      go off N seconds after the power button
#   tiny=poweroff-after=N     go off by itself after N seconds
#   tiny=reboot-after=N       reboot by itself after N seconds, every time anew
#   tiny=panic-after=N        crash the kernel after N seconds
#   tiny=write-disk           fill /dev/vda again and again, past QEMU's and the host's caches
#   tiny=count-boots          keep a count of boots in the first sector of /dev/vda, and print it
#   tiny=no-network           leave the NICs alone
#   tiny-hostname=NAME        the name that is sent with DHCP requests
#
# Words of its own on the serial port begin with TINY: BOOT, READY address, BUTTON, POWEROFF, REBOOT,
# COUNT n, WROTE n (MiB so far), WRITE FAILED. Port 22 answers SSH-2.0-tiny. ttyS0 has a root shell.

/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
export PATH=/bin HOME=/root TERM=linux
mkdir -p /dev/pts /run /root
mount -t devpts devpts /dev/pts
[ -c /dev/ttyS0 ] && exec </dev/ttyS0 >/dev/ttyS0 2>&1
echo "TINY BOOT"

mode() { # NAME: print the value of tiny=NAME or tiny=NAME=VALUE, fail if it was not given
    for word in $(cat /proc/cmdline); do
        case $word in
        tiny="$1") echo yes && return 0 ;;
        tiny="$1"=*) echo "${word#*=*=}" && return 0 ;;
        esac
    done
    return 1
}

after() { # SECONDS WORD COMMAND…
    sleep "$1"
    shift
    echo "TINY $1"
    shift
    "$@"
}

button() { # DEVICE: wait for presses of the power button
    exec 3<"$1"
    # An event is 24 bytes: 16 of time, then type (1: a key), code (116: power) and value (1: pressed).
    while set -- $(dd bs=24 count=1 2>/dev/null <&3 | od -An -v -tu2 -w24) && [ $# = 12 ]; do
        [ "$9 ${10} ${11}" = "1 116 1" ] || continue
        echo "TINY BUTTON"
        [ "$ignore" ] && continue
        [ "$slow" ] && sleep "$slow"
        echo "TINY POWEROFF"
        # As `poweroff -f` does it, without a process more: twenty guests may do it at once. And without
        # sync(2): nothing is mounted, and what writes to /dev/vda does so past the caches.
        echo o >/proc/sysrq-trigger
        sleep 60
    done
}

write_disk() {
    written=0
    while :; do
        for offset in $(seq 0 $(($(cat /sys/block/vda/size) / 2048 - 1))); do
            yes TINY | dd of=/dev/vda bs=1M count=1 iflag=fullblock oflag=direct seek="$offset" 2>/dev/null ||
                { echo "TINY WRITE FAILED"; sleep 1; continue; }
            written=$((written + 1))
            [ $((written % 16)) = 0 ] && echo "TINY WROTE $written"
        done
    done
}

count_boots() {
    count=$(dd if=/dev/vda bs=512 count=1 2>/dev/null | tr -cd 0-9)
    count=$((${count:-0} + 1))
    printf '%-512s' "$count" | dd of=/dev/vda bs=512 count=1 conv=fsync 2>/dev/null
    echo "TINY COUNT $count"
}

network() {
    ip link set lo up
    name=$(sed -n 's/.*tiny-hostname=\([^ ]*\).*/\1/p' /proc/cmdline)
    hostname "${name:-tiny}"
    nc -ll -p 22 -e /bin/ssh-banner &
    for nic in /sys/class/net/e*; do
        [ -e "$nic" ] || { echo "TINY READY none"; continue; }
        ip link set "${nic##*/}" up
        udhcpc -f -i "${nic##*/}" -s /bin/dhcp-event -x "hostname:${name:-tiny}" -t 30 -T 1 -A 1 >/dev/null 2>&1 &
    done
}

while read -r module; do insmod "/modules/$module"; done </modules/order
ignore=$(mode ignore-button)
slow=$(mode slow-poweroff)
for device in /dev/input/event*; do button "$device" & done
mode count-boots >/dev/null && count_boots
if mode no-network >/dev/null; then echo "TINY READY none"; else network; fi
mode write-disk >/dev/null && write_disk &
seconds=$(mode poweroff-after) && after "$seconds" POWEROFF poweroff -f &
seconds=$(mode reboot-after) && after "$seconds" REBOOT reboot -f &
seconds=$(mode panic-after) && after "$seconds" PANIC sh -c 'echo c >/proc/sysrq-trigger' &
while :; do setsid cttyhack sh; done
