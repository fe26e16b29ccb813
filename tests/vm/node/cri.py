"""Asks containerd for what the kubelet asks it for, given a manifest (CRI v1, kubernetes/cri-api).

cri.py start MANIFEST [--name NAME] [--group] [--home FOLDER] [--in SANDBOX]   prints {"sandbox", "container", "pid", "address"}
cri.py exec CONTAINER COMMAND...                                 prints its output, exits with its code
cri.py stop SANDBOX

The fields are those that pkg/kubelet/kuberuntime of Kubernetes 1.32 sets. --group sets memory.oom.group, as the kubelet does
unless `singleProcessOOMKill` is true. --home mounts a folder at /home/work, as a volume that outlives the container. --in starts
another container in a sandbox, as after a crash. A field that is not translated is an error. Links in /var/log/containers are
made as the kubelet makes them (legacyLogSymlink).
"""

import argparse
import json
import os
import shutil
import sys

import grpc
import yaml

sys.path.insert(0, "/opt/cri")
import api_pb2 as cri

SOCKET = "unix:///run/containerd/containerd.sock"
LINKS = "/var/log/containers"
DEADLINE_S = 120
UNITS = {"Mi": 1 << 20, "Gi": 1 << 30, "m": 0.001}
# What does not concern the node.
LEFT = {"automountServiceAccountToken", "restartPolicy", "nodeSelector", "tolerations"}
LEFT_OF_CONTAINER = {"ports", "startupProbe", "readinessProbe", "livenessProbe"}
# pkg/securitycontext/util.go
MASKED = ["/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
          "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"]
READ_ONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]


def call(service, method, request, answer):
    channel = grpc.insecure_channel(SOCKET)
    path = f"/runtime.v1.{service}/{method}"
    ask = channel.unary_unary(path, request_serializer=type(request).SerializeToString, response_deserializer=answer.FromString)
    return ask(request, timeout=DEADLINE_S, wait_for_ready=True)


def runtime(method, **fields):
    return call("RuntimeService", method, getattr(cri, method + "Request")(**fields), getattr(cri, method + "Response"))


def amount(text):
    for unit, factor in UNITS.items():
        if text.endswith(unit):
            return float(text[: -len(unit)]) * factor
    return float(text)


def memory_of_node():
    with open("/proc/meminfo") as file:
        return int(file.readline().split()[1]) << 10


def taken(fields, name, default=None):
    """Removes a field, so that what is left is what nobody looked at."""
    return fields.pop(name, default)


def nothing_left(fields, where):
    if fields:
        sys.exit(f"{where} has fields that are not translated: {sorted(fields)}")


def profile_of(profile):
    kinds = {"RuntimeDefault": cri.SecurityProfile.RuntimeDefault, "Unconfined": cri.SecurityProfile.Unconfined}
    return cri.SecurityProfile(profile_type=kinds[profile["type"] if profile else "Unconfined"])


def security(context, namespaces):
    capabilities = taken(context, "capabilities", {})
    is_privileged = taken(context, "privileged", False)
    # The kubelet only checks it.
    taken(context, "runAsNonRoot")
    fields = cri.LinuxContainerSecurityContext(
        privileged=is_privileged,
        namespace_options=namespaces,
        capabilities=cri.Capability(add_capabilities=capabilities.get("add", []), drop_capabilities=capabilities.get("drop", [])),
        run_as_user=cri.Int64Value(value=taken(context, "runAsUser")),
        run_as_group=cri.Int64Value(value=taken(context, "runAsGroup")),
        no_new_privs=taken(context, "allowPrivilegeEscalation", True) is False,
        readonly_rootfs=taken(context, "readOnlyRootFilesystem", False),
        seccomp=profile_of(taken(context, "seccompProfile")),
        apparmor=profile_of(taken(context, "appArmorProfile", {"type": "RuntimeDefault"})),
        masked_paths=[] if is_privileged else MASKED,
        readonly_paths=[] if is_privileged else READ_ONLY,
    )
    nothing_left(context, "securityContext")
    return fields


def resources(wanted, is_group):
    requests, limits = taken(wanted, "requests"), taken(wanted, "limits")
    nothing_left(wanted, "resources")
    # pkg/kubelet/qos/policy.go; none of the manifests is Guaranteed or BestEffort.
    score = 1000 - int(1000 * amount(requests["memory"]) / memory_of_node())
    return cri.LinuxContainerResources(
        cpu_shares=max(2, int(amount(requests["cpu"]) * 1024)),
        memory_limit_in_bytes=int(amount(limits["memory"])),
        oom_score_adj=min(max(score, 3), 999),
        unified={"memory.oom.group": "1"} if is_group else {},
    )


def mounts(container, volumes, home):
    found = []
    for mount in taken(container, "volumeMounts", []):
        volume = volumes[mount["name"]]["hostPath"]
        path = volume["path"]
        if volume["type"] == "DirectoryOrCreate":
            os.makedirs(path, exist_ok=True)
        found.append(cri.Mount(container_path=mount["mountPath"], host_path=path, readonly=mount.get("readOnly", False)))
    if home:
        found.append(cri.Mount(container_path="/home/work", host_path=home))
    return found


def start(args):
    with open(args.manifest) as file:
        manifest = yaml.safe_load(file)
    name = args.name or manifest["metadata"]["name"]
    namespace = manifest["metadata"].get("namespace", "default")
    pod = manifest["spec"]["template"]["spec"] if manifest["kind"] == "DaemonSet" else manifest["spec"]
    for field in LEFT:
        taken(pod, field)
    container, = taken(pod, "containers")
    volumes = {volume["name"]: volume for volume in taken(pod, "volumes", [])}
    pid = cri.NODE if taken(pod, "hostPID", False) else cri.CONTAINER
    nothing_left(pod, "the pod")
    for field in LEFT_OF_CONTAINER:
        taken(container, field)

    namespaces = cri.NamespaceOption(network=cri.POD, pid=pid, ipc=cri.POD)
    context = security(container.pop("securityContext"), namespaces)
    logs = f"/var/log/pods/{name}"
    sandbox = cri.PodSandboxConfig(
        metadata=cri.PodSandboxMetadata(name=name, uid=name, namespace=namespace),
        hostname=name,
        log_directory=logs,
        linux=cri.LinuxPodSandboxConfig(
            cgroup_parent=f"kubepods-burstable-pod{name.replace('-', '_')}.slice",
            security_context=cri.LinuxSandboxSecurityContext(
                privileged=context.privileged, namespace_options=namespaces, seccomp=profile_of({"type": "RuntimeDefault"})
            ),
        ),
    )
    config = cri.ContainerConfig(
        metadata=cri.ContainerMetadata(name=container["name"], attempt=1 if args.sandbox else 0),
        image=cri.ImageSpec(image=taken(container, "image")),
        command=taken(container, "command", []),
        args=taken(container, "args", []),
        mounts=mounts(container, volumes, args.home),
        log_path="log.1" if args.sandbox else "log.0",
        linux=cri.LinuxContainerConfig(
            resources=resources(taken(container, "resources"), args.group), security_context=context
        ),
    )
    container_name = taken(container, "name")
    nothing_left(container, "the container")
    if not args.sandbox:
        shutil.rmtree(logs, ignore_errors=True)
    os.makedirs(logs, exist_ok=True)

    pod_id = args.sandbox or runtime("RunPodSandbox", config=sandbox).pod_sandbox_id
    made = runtime("CreateContainer", pod_sandbox_id=pod_id, config=config, sandbox_config=sandbox).container_id
    os.makedirs(LINKS, exist_ok=True)
    os.symlink(f"{logs}/{config.log_path}", f"{LINKS}/{name}_{namespace}_{container_name}-{made}.log")
    runtime("StartContainer", container_id=made)
    info = json.loads(runtime("ContainerStatus", container_id=made, verbose=True).info["info"])
    address = runtime("PodSandboxStatus", pod_sandbox_id=pod_id).status.network.ip
    print(json.dumps({"sandbox": pod_id, "container": made, "pid": info["pid"], "address": address}))


def run(args):
    answer = runtime("ExecSync", container_id=args.container, cmd=args.command, timeout=DEADLINE_S)
    sys.stdout.buffer.write(answer.stdout)
    sys.stderr.buffer.write(answer.stderr)
    sys.exit(answer.exit_code)


def stop(args):
    runtime("StopPodSandbox", pod_sandbox_id=args.sandbox)
    runtime("RemovePodSandbox", pod_sandbox_id=args.sandbox)


def main():
    parser = argparse.ArgumentParser()
    tasks = parser.add_subparsers(required=True)
    task = tasks.add_parser("start")
    task.add_argument("manifest")
    task.add_argument("--name")
    task.add_argument("--group", action="store_true")
    task.add_argument("--home")
    task.add_argument("--in", dest="sandbox")
    task.set_defaults(run=start)
    task = tasks.add_parser("exec")
    task.add_argument("container")
    task.add_argument("command", nargs=argparse.REMAINDER)
    task.set_defaults(run=run)
    task = tasks.add_parser("stop")
    task.add_argument("sandbox")
    task.set_defaults(run=stop)
    args = parser.parse_args()
    args.run(args)


main()
