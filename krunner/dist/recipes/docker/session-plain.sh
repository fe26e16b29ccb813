#!/bin/sh
# A session without extra rights.
exec docker run --detach --name session \
    --label krunner/tracer=snapshot --label krunner/confidence=inferred \
    --user 1000:1000 --memory 512m \
    example/image-with-krunner:1.0 /opt/kernel/krunner app
