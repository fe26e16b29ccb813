#!/bin/sh
# A session without extra rights on a machine with krunner node.
exec docker run --detach --name session \
    --label krunner/tracer=node --label krunner/confidence=confirmed \
    --user 1000:1000 --memory 512m --volume /run/krunner:/run/krunner:ro \
    example/image-with-krunner:1.0 /opt/kernel/krunner app
