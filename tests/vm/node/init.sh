#!/bin/busybox sh
# The first program of a node: mounts the disk, puts the tests there and hands over to systemd.
set -eu
alias mount='busybox mount' cp='busybox cp' sleep='busybox sleep'
mount -t devtmpfs dev /dev
tries=0
until [ -b /dev/nvme0n1 ]; do
    tries=$((tries + 1))
    [ $tries -lt 300 ] || exit 1
    sleep 0.1
done
mount -t ext4 /dev/nvme0n1 /root
cp -a /node /root/opt/
mount -o move /dev /root/dev
exec busybox switch_root /root /sbin/init
