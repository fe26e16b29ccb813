#!/bin/sh
# Traces the OOM kills of the whole machine and delivers each to the container that it belongs to, at /run/krunner/node.sock.
# SYS_PTRACE is for the PID namespaces of other users' processes, which Docker's AppArmor profile would allow for Docker's own
# containers only. Docker's folder has the names of containers. A storm of kills keeps every processor busy: the shares give the node
# its part.
exec docker run --detach --name krunner-node \
    --label krunner/tracer=bpf --label krunner/confidence=confirmed \
    --cap-drop ALL --cap-add BPF --cap-add PERFMON --cap-add SYS_PTRACE \
    --security-opt no-new-privileges --security-opt apparmor=unconfined --user 0:0 \
    --pid host --cgroupns host --volume /sys/fs/cgroup:/sys/fs/cgroup:ro \
    --volume /run/krunner:/run/krunner --volume /var/lib/docker/containers:/var/lib/docker/containers:ro \
    --read-only --publish 127.0.0.1:9464:9464 --cpu-shares 4096 --memory 256m --restart unless-stopped \
    krunner:0.1.0 node --metrics 0.0.0.0:9464
