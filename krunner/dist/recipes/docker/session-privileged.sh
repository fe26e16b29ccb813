#!/bin/sh
# A privileged session.
exec docker run --detach --name session \
    --label krunner/tracer=bpf --label krunner/confidence=confirmed \
    --privileged --user 0:0 --memory 512m \
    example/image-with-krunner:1.0 /opt/kernel/krunner app
