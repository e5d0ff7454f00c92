#!/bin/sh
# Configures a new Debian root file system for an image. mmdebstrap calls it twice:
#   excludes ROOT   before most packages are unpacked
#   finish ROOT     after all packages were installed
# Environment: SUITE, ROOT_UUID.
set -eu
root=$2

# Files to exclude while the image is built. Packages that are installed later are complete.
excludes=$root/etc/dpkg/dpkg.cfg.d/01-qsysd-image
if [ "$1" = excludes ]; then
    cat > "$excludes" <<'END'
path-exclude=/usr/share/man/*
path-exclude=/usr/share/info/*
path-exclude=/usr/share/locale/*
path-include=/usr/share/locale/locale.alias
path-exclude=/usr/share/doc/*
path-include=/usr/share/doc/*/copyright
END
    exit 0
fi

put() { mkdir -p "$root/$(dirname "$1")" && cat > "$root/$1"; }

# identity: systemd writes the machine ID at the first boot. "uninitialized" instead of an empty file would
# also apply all presets then.
: > "$root/etc/machine-id"
rm -f "$root/var/lib/dbus/machine-id" "$root/etc/ssh/"ssh_host_*
echo debian | put etc/hostname
put etc/hosts <<'END'
127.0.0.1 localhost
::1 localhost ip6-localhost ip6-loopback
END
chroot "$root" passwd -q -l root

# apt: use the public archive, regardless of the mirror for this build
rm -f "$excludes" "$root/etc/apt/sources.list" "$root/etc/apt/sources.list.d/"* \
    "$root/etc/apt/apt.conf.d/99mmdebstrap" "$root/etc/dpkg/dpkg.cfg.d/99mmdebstrap"
put etc/apt/sources.list.d/debian.sources <<END
Types: deb
URIs: http://deb.debian.org/debian
Suites: $SUITE $SUITE-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://deb.debian.org/debian-security
Suites: $SUITE-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
END
find "$root/var/lib/apt/lists" "$root/var/cache/apt" -type f -delete

# disk: at each boot, systemd-repart grows the partition and systemd-growfs the file system, so that the
# disk can be resized later
put etc/fstab <<END
UUID=$ROOT_UUID / ext4 discard,errors=remount-ro,x-systemd.growfs 0 1
END
printf '[Partition]\nType=root\n' | put etc/repart.d/50-root.conf

# network: for a guest without a seed; files of cloud-init (10-cloud-init-*) have precedence
put etc/systemd/network/90-dhcp.network <<'END'
[Match]
Name=en* eth*

[Network]
DHCP=yes
END
# One configured interface is sufficient for network-online.target; a guest without a network boots, too.
put etc/systemd/system/systemd-networkd-wait-online.service.d/50-qsysd.conf <<'END'
[Service]
ExecStart=
ExecStart=/lib/systemd/systemd-networkd-wait-online --any --timeout=30
END
ln -sf ../run/systemd/resolve/stub-resolv.conf "$root/etc/resolv.conf"

# cloud-init: search for the seed only. systemd grows the root file system, the locale exists, and the GRUB
# packages are not installed. An RSA host key would take seconds to generate.
put etc/cloud/cloud.cfg.d/90-qsysd.cfg <<'END'
datasource_list: [NoCloud, None]
system_info:
  network:
    renderers: [networkd]
growpart: {mode: "off"}
resize_rootfs: false
grub_dpkg: {enabled: false}
locale: C.UTF-8
ssh_genkeytypes: [ed25519, ecdsa]
ssh: {emit_keys_to_console: false}
no_ssh_fingerprints: true
END
# cloud-init writes this file for "ssh_pwauth: false" in the seed. If it contains the line already, cloud-init does
# not restart sshd, which would refuse connections for a moment during the first boot.
echo PasswordAuthentication no | put etc/ssh/sshd_config.d/50-cloud-init.conf
chmod 0600 "$root/etc/ssh/sshd_config.d/50-cloud-init.conf"
echo LANG=C.UTF-8 | put etc/default/locale
# A seed with "dsmode: local" is applied before the network is up, so the network stage has nothing to do.
for unit in cloud-init cloud-init-network; do
    if [ -e "$root/usr/lib/systemd/system/$unit.service" ] && [ ! -e "$root/usr/lib/systemd/system/cloud-init-main.service" ]; then
        put "etc/systemd/system/$unit.service.d/50-qsysd.conf" <<'END'
[Service]
ExecCondition=/bin/sh -c '! grep -qs dsmode=local /run/cloud-init/status.json'
END
    fi
done
# Start sshd before the later stages of cloud-init.
put etc/systemd/system/cloud-config.service.d/50-qsysd.conf <<'END'
[Unit]
After=ssh.service
END

# services: persistent journal, which includes messages of the last shutdown
mkdir -p "$root/var/log/journal"
chroot "$root" systemctl --quiet enable systemd-networkd systemd-resolved ssh
chroot "$root" systemctl --quiet disable e2scrub_reap.service e2scrub_all.timer
# not useful in a virtual machine: crash records of the firmware, binaries of other architectures
chroot "$root" systemctl --quiet mask systemd-pstore.service systemd-binfmt.service \
    proc-sys-fs-binfmt_misc.automount

# boot: an initramfs with the drivers of QEMU's disks, which loads those of existing disks. Without udev it
# is half as big and takes half the time; udev in the root file system loads all other drivers.
put etc/initramfs-tools/conf.d/qsysd <<'END'
MODULES=list
COMPRESS=lz4
FSTYPE=ext4
RESUME=none
END
put etc/initramfs-tools/hooks/qsysd <<'END'
#!/bin/sh
# Selects the drivers of the initramfs, and removes udev from it. See initramfs-tools(7).
if [ "$1" = prereqs ]; then exit 0; fi
. /usr/share/initramfs-tools/hook-functions
manual_add_modules virtio_pci virtio_blk virtio_scsi sd_mod ahci ata_piix nvme
rm -rf "$DESTDIR/usr/lib/systemd" "$DESTDIR/usr/lib/udev" "$DESTDIR/usr/bin/udevadm" "$DESTDIR/usr/sbin/dmsetup"
rm -f "$DESTDIR/scripts/init-bottom/udev"
find "$DESTDIR" -name 'dm-mod.ko*' -delete
END
put etc/initramfs-tools/scripts/init-top/udev <<'END'
#!/bin/sh
# Replaces udev: loads the drivers of the devices on the buses. Only drivers of disks are included.
if [ "$1" = prereqs ]; then exit 0; fi
modprobe -abq $(cat /sys/bus/pci/devices/*/modalias)
modprobe -abq $(cat /sys/bus/virtio/devices/*/modalias)
if [ -d /sys/bus/scsi ]; then modprobe -q sd_mod; fi
exit 0
END
chmod 0755 "$root/etc/initramfs-tools/hooks/qsysd" "$root/etc/initramfs-tools/scripts/init-top/udev"

# GRUB's core image is outside of the file system and reads this file. /vmlinuz and /initrd.img are links to
# the newest kernel (linux-update-symlinks(1)), so that a new kernel does not require update-grub.
# linux16 loads the compressed kernel. The command linux relocates the memory for the unpacked kernel, four times
# as much, byte by byte, which takes seconds without KVM.
put boot/grub/grub.cfg <<END
# No program overwrites this file; it can be edited.
set options="root=UUID=$ROOT_UUID ro console=tty0 console=ttyS0,115200"
if linux16 /vmlinuz \$options; then
  initrd16 /initrd.img
else
  linux16 /vmlinuz.old \$options
  initrd16 /initrd.img.old
fi
boot
END
unset INITRD
echo "qsysd: initramfs"
for kernel in "$root"/lib/modules/*; do
    version=$(basename "$kernel")
    chroot "$root" update-initramfs -c -k "$version"
    chroot "$root" linux-update-symlinks install "$version" "/boot/vmlinuz-$version"
done

rm -rf "$root"/var/cache/debconf/*-old "$root"/var/lib/dpkg/*-old "$root"/var/log/apt/* \
    "$root"/var/log/dpkg.log "$root"/var/log/alternatives.log "$root"/var/log/bootstrap.log
chroot "$root" dpkg-query -W -f '${db:Status-Abbrev}\n' | sed 's/^ii.*/package/' | sort | uniq -c |
    sed -n 's/^ *\([0-9]*\) package$/qsysd: packages \1/p'
