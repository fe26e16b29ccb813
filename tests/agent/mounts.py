"""Prints what the agent's own code mounts into the container of an image, and what it sets for it, as JSON.

Nothing of the agent's is overridden. What it would have learnt from the manager and from Docker comes in: the distribution of the
image, and the name of the volume that it has filled.
"""

import asyncio
import json
import pathlib
import sys
import uuid

from ai.backend.agent.docker.agent import DockerKernelCreationContext
from ai.backend.agent.resources import KernelResourceSpec

DISTRO, VOLUME = sys.argv[1:]

IMAGE = {
    "canonical": "registry.example/krunner/session:1",
    "registry": {"name": "registry.example"},
    "is_local": True,
    "labels": {"ai.backend.base-distro": DISTRO},
}
CONTAINER = {
    "krunner-volumes": {"static-gnu": VOLUME},
    "sandbox-type": "docker",
    "scratch-root": pathlib.Path("/nonexistent"),
}


async def main():
    context = DockerKernelCreationContext(
        kernel_id=uuid.uuid4(),
        session_id=uuid.uuid4(),
        agent_id="i-test",
        kernel_config={"image": IMAGE, "internal_data": None},
        local_config={"container": CONTAINER},
        computers={},
        port_pool=set(),
        agent_sockpath=pathlib.Path("/nonexistent"),
        resource_lock=asyncio.Lock(),
    )
    spec = KernelResourceSpec(container_id="", slots={}, allocations={}, scratch_disk_size=0)
    environ = {}
    await context.mount_krunner(spec, environ)
    mounts = [{"source": str(mount.source), "target": str(mount.target)} for mount in spec.mounts]
    json.dump({"mounts": mounts, "environ": environ}, sys.stdout)


asyncio.run(main())
