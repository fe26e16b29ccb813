#!/bin/sh
# Monitors the OOM kills of the whole machine. It may load BPF programs and nothing else.
exec docker run --detach --name krunner-monitor \
    --label krunner/tracer=bpf --label krunner/confidence=confirmed \
    --cap-drop ALL --cap-add BPF --cap-add PERFMON --security-opt no-new-privileges --user 0:0 \
    --pid host --cgroupns host --volume /sys/fs/cgroup:/sys/fs/cgroup:ro \
    --read-only --network none --memory 128m --restart unless-stopped \
    krunner:0.1.0 monitor --all-namespaces --json
