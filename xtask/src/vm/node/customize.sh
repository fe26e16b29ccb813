#!/bin/sh
# Makes a node of a fresh Debian root file system: customize.sh CRI-PACKAGE ROOT. The kernel's package comes from the same mirror.
set -eu
cri=$1 root=$2

# The kernel's package is unpacked, not installed: it would pull in initramfs-tools and GRUB.
kernel=$(chroot "$root" apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*-cloud-amd64\)$/\1/p')
chroot "$root" sh -c "cd /tmp && apt-get -qq download $kernel && dpkg -x linux-image-*.deb kernel"
modules=$root/tmp/kernel/usr/lib/modules
[ -d "$modules" ] || modules=$root/tmp/kernel/lib/modules
cp -a "$modules" "$root/usr/lib/"
cp "$root"/tmp/kernel/boot/vmlinuz-* "$root/boot/vmlinuz"
chroot "$root" depmod "${kernel#linux-image-}"

# The messages of the container runtime interface, for Python. Go's annotations are not protobuf's.
dpkg -x "$cri" "$root/tmp/cri"
mkdir "$root/opt/cri"
proto=$(find "$root/tmp/cri" -path '*/v1/api.proto')
grep -v gogo "$proto" | sed 's/\[(gogoproto[^]]*)[^]]*\]//' > "$root/opt/cri/api.proto"
chroot "$root" protoc --proto_path=/opt/cri --python_out=/opt/cri api.proto
# Not all of /tmp: it has the configuration without which mmdebstrap would clean up this machine.
rm -rf "$root"/tmp/kernel* "$root"/tmp/cri "$root"/tmp/*.deb

# Nothing here needs udev; the rest only makes the boot slow.
for unit in ldconfig systemd-hwdb-update systemd-journal-catalog-update systemd-update-done systemd-udevd \
    systemd-udev-trigger systemd-binfmt systemd-random-seed systemd-oomd earlyoom e2scrub_reap apt-daily.timer \
    apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer systemd-udevd-control.socket systemd-udevd-kernel.socket \
    getty.target getty@tty1 serial-getty@ttyS0 sys-kernel-debug.mount sys-kernel-tracing.mount netavark-dhcp-proxy.socket \
    netavark-firewalld-reload netavark-nftables-reload podman podman.socket podman-auto-update podman-auto-update.timer \
    podman-restart podman-clean-transient systemd-pcrmachine systemd-tpm2-setup systemd-tpm2-setup-early; do
    case $unit in *.*) ;; *) unit=$unit.service ;; esac
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
# The tests start the engines that they need.
rm -f "$root"/etc/systemd/system/multi-user.target.wants/docker.service "$root"/etc/systemd/system/sockets.target.wants/docker.socket \
    "$root"/etc/systemd/system/multi-user.target.wants/containerd.service
rm -f "$root/etc/fstab"
mkdir -p "$root/etc/systemd/journald.conf.d"
printf '[Journal]\nStorage=volatile\n' > "$root/etc/systemd/journald.conf.d/volatile.conf"
echo node > "$root/etc/hostname"
echo '127.0.0.1 localhost node' > "$root/etc/hosts"

# A user with rootless containers and a running systemd.
chroot "$root" useradd --create-home --uid 1000 --shell /bin/sh work
echo work:100000:65536 > "$root/etc/subuid"
echo work:100000:65536 > "$root/etc/subgid"
mkdir -p "$root/var/lib/systemd/linger"
touch "$root/var/lib/systemd/linger/work"

# Kubelet's settings of containerd. Debian's file has only the folders of CNI.
cat > "$root/etc/containerd/config.toml" << 'END'
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/usr/lib/cni"
  conf_dir = "/etc/cni/net.d"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = true
END

# The initramfs puts the tests at /opt/node; they write to the second serial line.
cat > "$root/etc/systemd/system/tests.service" << 'END'
[Unit]
Description=The tests of krunner
After=systemd-logind.service dbus.service

[Service]
ExecStart=/opt/node/tests
WorkingDirectory=/opt/node
# Out of memory, systemd would stop the whole unit.
OOMPolicy=continue
StandardOutput=journal+console
StandardError=journal+console
END
ln -s ../tests.service "$root/etc/systemd/system/multi-user.target.wants/tests.service"
