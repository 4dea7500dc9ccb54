"""Every name that a manifest gives exists: settings and secrets with their keys, accounts, services, ports, and what selectors are to select."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from kustomize import Doc
from manifests import K8S, Pod, of_kind, pods, selects, title

HOST = re.compile(r"(?:(?:http|postgresql[+a-z0-9]*)://(?:[^@/\"]*@)?|^|,)([a-z][a-z0-9-]*):(\d+)(?![\d.])")
VARIABLE = re.compile(r"\$\(?\{?([A-Z][A-Z0-9_]*)")
SECRET_WORDS = re.compile(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY")


def documented_secrets() -> dict[str, set[str]]:
    """Return name -> keys of the secrets that secrets.example.env tells of."""
    secrets: dict[str, set[str]] = {}
    for line in (K8S / "secrets.example.env").read_text().splitlines():
        if heading := re.match(r"# Secret ([a-z0-9-]+):", line):
            keys = secrets.setdefault(heading[1], set())
        elif line and not line.startswith("#"):
            keys.add(line.removesuffix("="))
    return secrets


def settings_rules(docs: list[Doc]) -> Iterator[str]:
    """Yield settings, secrets, keys and accounts that are named and not there, and secrets that stand in a manifest."""
    maps = {doc["metadata"]["name"]: set(doc["data"]) for doc in of_kind(docs, "ConfigMap")}
    secrets = documented_secrets()
    accounts = {doc["metadata"]["name"] for doc in of_kind(docs, "ServiceAccount")}
    for pod in pods(docs):
        if (account := pod.spec.get("serviceAccountName")) and account not in accounts:
            yield f"{pod.name}: service account {account} is not there"
        for container in pod.containers():
            yield from (f"{pod.name}: {text}" for text in [*_sources(container, maps, secrets), *_variables(container, maps, secrets)])
    for doc in of_kind(docs, "RayCluster"):
        reference = doc["spec"].get("gcsFaultToleranceOptions", {}).get("redisPassword", {}).get("valueFrom", {}).get("secretKeyRef")
        if reference and reference["key"] not in secrets.get(reference["name"], ()):
            yield f"{title(doc)}: secret {reference} is not in secrets.example.env"
    yield from (f"{title(doc)}: values of secrets do not belong here" for doc in of_kind(docs, "Secret"))


def _sources(container: Doc, maps: dict[str, set[str]], secrets: dict[str, set[str]]) -> Iterator[str]:
    for source in container.get("envFrom", []):
        for kind, known in (("configMapRef", maps), ("secretRef", secrets)):
            if kind in source and source[kind]["name"] not in known:
                yield f"{kind} {source[kind]['name']} is not there"
    for entry in container.get("env", []):
        for kind, known in (("configMapKeyRef", maps), ("secretKeyRef", secrets)):
            if (reference := entry.get("valueFrom", {}).get(kind)) and reference["key"] not in known.get(reference["name"], ()):
                yield f"{kind} {reference['name']}: {reference['key']} is not there"
        if "value" in entry and SECRET_WORDS.search(entry["name"]):
            yield f"{entry['name']} stands there for all to read"


def environment(container: Doc, maps: dict[str, set[str]], secrets: dict[str, set[str]]) -> set[str]:
    """Return the names of a container's variables."""
    names = {entry["name"] for entry in container.get("env", [])}
    for source in container.get("envFrom", []):
        names |= maps.get(source.get("configMapRef", {}).get("name"), set()) | secrets.get(source.get("secretRef", {}).get("name"), set())
    return names


def _variables(container: Doc, maps: dict[str, set[str]], secrets: dict[str, set[str]]) -> Iterator[str]:
    used = set(VARIABLE.findall(" ".join([*container.get("command", []), *container.get("args", [])])))
    yield from (f"variable {name} is not set" for name in sorted(used - environment(container, maps, secrets)))


def entrypoint_rules(docs: list[Doc]) -> Iterator[str]:
    """Yield variables of entrypoints that are not set where they are filled in: in the pod that submits, or in the head."""
    maps = {doc["metadata"]["name"]: set(doc["data"]) for doc in of_kind(docs, "ConfigMap")}
    for doc in of_kind(docs, "RayJob"):
        known = environment(doc["spec"]["submitterPodTemplate"]["spec"]["containers"][0], maps, documented_secrets())
        yield from (f"{title(doc)}: ${name} is not set" for name in sorted(set(VARIABLE.findall(doc["spec"]["entrypoint"])) - known))


def service_rules(docs: list[Doc]) -> Iterator[str]:
    """Yield services that lead nowhere, and addresses that lead to no service."""
    all_pods, services = list(pods(docs)), {doc["metadata"]["name"]: doc for doc in of_kind(docs, "Service")}
    for name, doc in services.items():
        chosen = [pod for pod in all_pods if selects(pod.labels, {"matchLabels": doc["spec"]["selector"]})]
        if not chosen:
            yield f"Service {name} selects nothing"
        for port in doc["spec"]["ports"]:
            target = port.get("targetPort", port["port"])
            yield from (f"Service {name}: {pod.name} has no port {target}" for pod in chosen if target not in {*pod.ports(), *pod.ports().values()})
    for doc in of_kind(docs, "StatefulSet"):
        if doc["spec"]["serviceName"] not in services:
            yield f"{title(doc)}: service {doc['spec']['serviceName']} is not there"
    for where, host, port_number in addresses(docs):
        if port_number not in {port["port"] for port in services.get(host, {"spec": {"ports": []}})["spec"]["ports"]}:
            yield f"{where}: there is no service {host} with port {port_number}"


def addresses(docs: list[Doc]) -> Iterator[tuple[str, str, int]]:
    """Yield where it stands, host and port of every address in a setting, a variable, an argument or a specification of Ray."""
    texts: list[tuple[str, Any]] = [(title(doc), value) for doc in of_kind(docs, "ConfigMap") for value in doc["data"].values() if "\n" not in value]
    texts += [(title(doc), doc["spec"].get("gcsFaultToleranceOptions", {}).get("redisAddress", "")) for doc in of_kind(docs, "RayCluster")]
    for pod in pods(docs):
        for container in pod.containers():
            texts += [(pod.name, entry["value"]) for entry in container.get("env", []) if "value" in entry]
            texts += [(pod.name, word.partition("=")[2]) for word in container.get("args", []) if word.startswith("--")]
    yield from ((where, host, int(port)) for where, text in texts for host, port in HOST.findall(str(text)) if host != "localhost")


def selector_rules(docs: list[Doc]) -> Iterator[str]:
    """Yield selectors that select nothing, and ports of policies and monitors that what they select does not have."""
    all_pods = list(pods(docs))
    for doc in of_kind(docs, "Deployment", "StatefulSet"):
        if not selects(doc["spec"]["template"]["metadata"]["labels"], doc["spec"]["selector"]):
            yield f"{title(doc)}: its selector is not that of its pods"
    for doc in of_kind(docs, "NetworkPolicy"):
        rules = doc["spec"].get("ingress") or []
        chosen = _chosen(all_pods, doc["spec"]["podSelector"])
        peers = [peer["podSelector"] for rule in rules for peer in rule.get("from", []) if "namespaceSelector" not in peer]
        yield from (f"{title(doc)}: {json.dumps(s)} selects nothing" for s in [doc["spec"]["podSelector"], *peers] if not _chosen(all_pods, s))
        ports = [entry["port"] for rule in rules for entry in rule.get("ports", [])]
        yield from (f"{title(doc)}: {pod.name} has no port {port}" for port in ports for pod in chosen if port not in pod.ports())
    for doc in of_kind(docs, "PodDisruptionBudget"):
        chosen = _chosen(all_pods, doc["spec"]["selector"])
        if not chosen:
            yield f"{title(doc)} selects nothing"
        if any(pod.owner.startswith("Ray") for pod in chosen) and not isinstance(doc["spec"].get("minAvailable"), int):
            yield f"{title(doc)}: pods of a custom resource need a number as minAvailable"
    for doc in of_kind(docs, "PodMonitor"):
        chosen = _chosen(all_pods, doc["spec"]["selector"])
        if not chosen:
            yield f"{title(doc)} selects nothing"
        names = [endpoint["port"] for endpoint in doc["spec"]["podMetricsEndpoints"]]
        yield from (f"{title(doc)}: {pod.name} has no port {n}" for n in names for pod in chosen if n not in pod.ports().values())


def _chosen(all_pods: list[Pod], selector: Doc) -> list[Pod]:
    return [pod for pod in all_pods if selects(pod.labels, selector)]
