#!/bin/sh
# Creates the disk of a Debian image: mmdebstrap installs a root file system, which is copied into the
# prepared partition.
#
# qsysd runs this script in separate mount and PID namespaces. Its mounts are not visible to other processes,
# and when qsysd exits for any reason, the kernel kills the processes and removes the mounts.
#
# Environment: WORK (an empty directory), TMPFS (size of a tmpfs on it, see tmpfs(5), or empty to use the
# disk), SUITE, PACKAGES (separated by commas), SOURCES (a sources.list), APT_OPTIONS (an apt.conf file),
# CUSTOMIZE (the script image-debian-customize.sh), DISK (a raw disk with boot loader and partition table),
# OFFSET and BLOCKS (its root partition, in bytes and KiB), ROOT_UUID, TARGET (the qcow2 file to create).
set -eu

say() { echo "qsysd: $*"; }

if [ -n "$TMPFS" ]; then
    mount -t tmpfs -o "size=$TMPFS,mode=0755" qsysd-image "$WORK"
fi
root=$WORK/root
disk=$WORK/disk.raw
mkdir "$root"

# INITRD=No: the kernel package must not create an initramfs; customize creates it with other settings.
# With path excludes in --dpkgopt, mmdebstrap would filter each package, which is slow.
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
# GRUB before 2.12 does not support metadata_csum_seed and orphan_file. The kernel of the guest zeroes the
# inode tables in the background.
mke2fs -q -F -t ext4 -L root -U "$ROOT_UUID" -m 1 -O '^metadata_csum_seed,^orphan_file' \
    -E "offset=$OFFSET,lazy_itable_init=1,lazy_journal_init=1,nodiscard" -d "$root" "$disk" "${BLOCKS}k"

say "compressing"
# zstd compresses five times as fast as zlib here, and decompresses faster.
qemu-img convert -W -m 8 -f raw -O qcow2 -c -o compression_type=zstd "$disk" "$TARGET"
