#!/bin/sh
# A session of a user without rights; krunner's file has what BPF takes. No --security-opt no-new-privileges here.
exec docker run --detach --name session \
    --label krunner/tracer=bpf --label krunner/confidence=confirmed \
    --cap-add BPF --cap-add PERFMON --user 1000:1000 --memory 512m \
    example/image-with-krunner:1.0 /opt/kernel/krunner app
