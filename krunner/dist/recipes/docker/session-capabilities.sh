#!/bin/sh
# A session of an unprivileged user. krunner's file has the capabilities for BPF. Do not add --security-opt no-new-privileges.
exec docker run --detach --name session \
    --label krunner/tracer=bpf --label krunner/confidence=confirmed \
    --cap-add BPF --cap-add PERFMON --user 1000:1000 --memory 512m \
    example/image-with-krunner:1.0 /opt/kernel/krunner app
