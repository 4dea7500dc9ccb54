"""What every pod of ours keeps to: no more rights than it needs, its share of a node and no more, and someone who looks whether it lives."""

from __future__ import annotations

from collections.abc import Iterator

from kustomize import Doc
from manifests import Pod, of_kind, pods, quantity, ray_clusters, title

UNPROBED = {"autoscaler", "submitter"}  # the one is KubeRay's, and has no address to ask; the other runs to its end
OURS = ("tomoray-gpu", "tomoray-cpu")


def security_rules(docs: list[Doc]) -> Iterator[str]:
    """Yield what a pod may do that it need not."""
    scaled = {title(doc) for doc, _, spec in ray_clusters(docs) if spec.get("enableInTreeAutoscaling")}
    for pod in pods(docs):
        needs_token = pod.owner in scaled and pod.role == "head"
        if pod.spec.get("automountServiceAccountToken") is not needs_token:
            yield f"{pod.name}: automountServiceAccountToken must be {str(needs_token).lower()}"
        if pod.spec.get("enableServiceLinks") is not False:
            yield f"{pod.name}: enableServiceLinks must be false: a service called mlflow would set MLFLOW_PORT"
        context = pod.spec.get("securityContext", {})
        if not (context.get("runAsNonRoot") is True and context.get("runAsUser", 0) > 0 and context.get("fsGroup", 0) > 0):
            yield f"{pod.name}: must run as a user of its own, with a group that owns its volumes"
        if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
            yield f"{pod.name}: seccompProfile must be RuntimeDefault"
        for flag in ("hostNetwork", "hostPID", "hostIPC"):
            if pod.spec.get(flag):
                yield f"{pod.name}: {flag}"
        if any("hostPath" in volume for volume in pod.spec.get("volumes", [])):
            yield f"{pod.name}: hostPath"
        yield from (f"{pod.name}: {c['name']}: {text}" for c in pod.containers() for text in _container(c))
    for account in of_kind(docs, "ServiceAccount"):
        if account.get("automountServiceAccountToken") is not False:
            yield f"{title(account)}: automountServiceAccountToken must be false; pods that need a token say so"


def _container(container: Doc) -> Iterator[str]:
    context = container.get("securityContext", {})
    if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
        yield "allowPrivilegeEscalation must be false"
    if context.get("capabilities") != {"drop": ["ALL"]}:
        yield "all capabilities must be dropped"
    if context.get("readOnlyRootFilesystem") is not True:
        yield "readOnlyRootFilesystem must be true"
    if any(port.get("hostPort") for port in container.get("ports", [])):
        yield "hostPort"


def running_rules(docs: list[Doc]) -> Iterator[str]:
    """Yield what keeps a pod from running well: no probes, no limits, images that may change, nowhere to write."""
    for pod in pods(docs):
        for container in pod.spec["containers"]:
            if container["name"] not in UNPROBED:
                yield from (f"{pod.name}: {container['name']}: no {p}" for p in ("livenessProbe", "readinessProbe") if p not in container)
        for container in pod.containers():
            found = [*_resources(container), *_image(container), *_mounts(container, pod)]
            yield from (f"{pod.name}: {container['name']}: {text}" for text in found)
        for volume in pod.spec.get("volumes", []):
            if "sizeLimit" not in volume.get("emptyDir", {"sizeLimit": None}):
                yield f"{pod.name}: {volume['name']}: no sizeLimit"


def _resources(container: Doc) -> Iterator[str]:
    limits, requests = (container.get("resources", {}).get(part, {}) for part in ("limits", "requests"))
    for name in ("cpu", "memory"):
        if name not in limits or name not in requests:
            yield f"no limit or no request of {name}"
        elif quantity(requests[name]) > quantity(limits[name]):
            yield f"requests more {name} than its limit"
    if limits.get("nvidia.com/gpu") != requests.get("nvidia.com/gpu"):
        yield "GPUs are requested as they are limited"
    if "nvidia.com/gpu" in limits and "tomoray-gpu" not in container["image"]:
        yield "has a GPU, and an image without CUDA"


def _image(container: Doc) -> Iterator[str]:
    name, _, tag = container["image"].rpartition(":")
    if not name or tag in ("", "latest"):
        yield f"{container['image']} must have a tag that stays"
    elif "tomoray" in name:
        from tomoray import __version__

        if name.rpartition("/")[2] not in OURS or tag != __version__:
            yield f"{container['image']} must be one of {', '.join(OURS)} of version {__version__}"


def _mounts(container: Doc, pod: Pod) -> Iterator[str]:
    known = {volume["name"] for volume in pod.spec.get("volumes", [])} | set(pod.claims)
    mounts = container.get("volumeMounts", [])
    yield from (f"volume {mount['name']} is not there" for mount in mounts if mount["name"] not in known)
    paths = [mount["mountPath"] for mount in mounts]
    if len(set(paths)) < len(paths):
        yield "two volumes at one place"
    reads_home = any("configMapRef" in source for source in container.get("envFrom", []))  # whose HOME is /tmp
    if reads_home and container["name"] != "make-bucket" and "/tmp" not in paths:
        yield "its HOME is /tmp, where it cannot write"


def memory_rules(docs: list[Doc]) -> Iterator[str]:
    """Yield Ray pods whose object store does not fit: /dev/shm is memory of the container's, and the store lies in it."""
    for doc, _, spec in ray_clusters(docs):
        for name, part in [("head", spec["headGroupSpec"]), *((group["groupName"], group) for group in spec["workerGroupSpecs"])]:
            yield from (f"{title(doc)}: {name}: {text}" for text in _object_store(part))


def _object_store(part: Doc) -> Iterator[str]:
    template, given = part["template"]["spec"], part["rayStartParams"]
    container = template["containers"][0]
    mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume.get("emptyDir", {}) for volume in template["volumes"]}
    shm = volumes.get(mounted.get("/dev/shm", ""), {})
    if shm.get("medium") != "Memory":
        yield "/dev/shm must be an emptyDir in memory"
        return
    store, room = int(given.get("object-store-memory", 0)), quantity(shm["sizeLimit"])
    memory = quantity(container["resources"]["limits"]["memory"])
    if not 0 < store <= 0.95 * room:
        yield "object-store-memory must be given, and leave something of /dev/shm"
    if room > 0.5 * memory:
        yield "/dev/shm must leave half of the container's memory to its processes"
    if given.get("object-spilling-directory") not in mounted:
        yield "object-spilling-directory must be a volume"
