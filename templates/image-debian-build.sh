#!/bin/sh
# Makes the disk of a Debian image: a root file system by mmdebstrap, put into the prepared partition.
#
# qsysd runs it in mount and PID namespaces of its own. Whatever is mounted here is seen by nobody
# else, and when qsysd ends, however that happens, the kernel ends everything in here and the mounts
# go with it.
#
# From the environment: WORK (an empty directory), TMPFS (its size as tmpfs(5) takes it, or empty to
# use the disk), SUITE, PACKAGES (commas), SOURCES (a sources.list), APT_OPTIONS (a file of apt.conf),
# CUSTOMIZE (a script that finishes the root), DISK (a raw disk with its boot loader and partition
# table), OFFSET and BLOCKS (its root partition: bytes, KiB), ROOT_UUID, TARGET (the qcow2 file to make).
set -eu

say() { echo "qsysd: $*"; }

if [ -n "$TMPFS" ]; then
    mount -t tmpfs -o "size=$TMPFS,mode=0755" qsysd-image "$WORK"
fi
root=$WORK/root
disk=$WORK/disk.raw
mkdir "$root"

# INITRD=No: the kernel's own hook would make a big initramfs first; customize makes the one that stays.
# The path excludes are not given as --dpkgopt, since each archive would then go through a slow filter.
export INITRD=No DEBIAN_FRONTEND=noninteractive
mmdebstrap --verbose --mode=root --variant=minbase --format=directory \
    --skip=cleanup/apt,cleanup/reproducible \
    --include="$PACKAGES" \
    --aptopt='Apt::Install-Recommends "false"' \
    --aptopt='Acquire::Languages "none"' --aptopt='APT::Sandbox::User "root"' \
    --aptopt="$APT_OPTIONS" \
    --dpkgopt=force-unsafe-io \
    --essential-hook='sh "$CUSTOMIZE" excludes "$1"' \
    --customize-hook='sh "$CUSTOMIZE" finish "$1"' \
    "$SUITE" "$root" "$SOURCES"

say "file system"
cp --sparse=always "$DISK" "$disk"
# GRUB reads neither metadata_csum_seed (before 2.12) nor an orphan file; the tables are zeroed by the
# guest's kernel when it has time.
mke2fs -q -F -t ext4 -L root -U "$ROOT_UUID" -m 1 -O '^metadata_csum_seed,^orphan_file' \
    -E "offset=$OFFSET,lazy_itable_init=1,lazy_journal_init=1,nodiscard" -d "$root" "$disk" "${BLOCKS}k"

say "compressing"
# zstd packs five times as fast as zlib here, and a guest reads it faster too.
qemu-img convert -W -m 8 -f raw -O qcow2 -c -o compression_type=zstd "$disk" "$TARGET"
