#!/bin/sh
# Kills for memory of the whole machine, by a monitor without any right: inferred from what /proc shows.
exec docker run --detach --name krunner-monitor \
    --label krunner/tracer=snapshot --label krunner/confidence=inferred \
    --cap-drop ALL --security-opt no-new-privileges --user 65532:65532 \
    --pid host --cgroupns host --volume /sys/fs/cgroup:/sys/fs/cgroup:ro \
    --read-only --network none --memory 128m --restart unless-stopped \
    krunner:0.1.0 monitor --all-namespaces --json
