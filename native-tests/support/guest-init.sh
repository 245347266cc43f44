#!/bin/busybox sh
# The first process of the test machine (support/vm.ts). It brings up devices and the network, then runs
# the scripts that the host sends over a virtio serial port, one after another, until the host says
# `poweroff` or goes away.
#
#   host  -> guest   run <id> <base64 of a shell script>
#   guest -> host    ready
#                    done <id> <exit status> <size of the output>, followed by exactly that many bytes
#
# The output's length goes first, so nothing a script prints can be mistaken for the end of it, and what a
# background process prints later cannot fall into another script's answer. The console (ttyS0) carries
# only the kernel's and this script's own messages.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
/bin/busybox mkdir -p /proc /sys /dev /run /tmp /root /mnt
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
exec </dev/console >/dev/console 2>&1
/bin/busybox --install -s /bin
hostname guest

while read -r module arguments; do
  insmod "/modules/$module.ko" $arguments || echo "guest: module $module did not load"
done </modules/order

ip link set lo up
ip address add 10.0.2.15/24 dev eth0
ip link set eth0 up
ip route add default via 10.0.2.2

port=/dev/vport0p1
tries=0
until [ -c $port ]; do
  tries=$((tries + 1))
  [ $tries -lt 200 ] || { echo "guest: $port is missing"; poweroff -n -f; }
  sleep 0.05
done
exec 3<>$port
echo ready >&3

while read -r verb id script <&3; do
  [ "$verb" = run ] || break
  echo "$script" | base64 -d >/run/$id.sh
  sh /run/$id.sh </dev/null >/run/$id.out 2>&1 3>&-
  status=$?
  size=$(stat -c %s /run/$id.out)
  {
    echo "done $id $status $size"
    head -c "$size" /run/$id.out
  } >&3
  rm -f /run/$id.sh /run/$id.out
done
poweroff -n -f
