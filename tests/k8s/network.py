"""Who may talk to whom, by the network policies."""

from __future__ import annotations

from dataclasses import dataclass, field

from kustomize import Doc
from manifests import NAMESPACE, of_kind, selects


@dataclass(frozen=True)
class Caller:
    """Where a connection comes from."""

    labels: dict[str, str] = field(default_factory=dict)
    namespace: str = NAMESPACE


def may_call(docs: list[Doc], caller: Caller, labels: dict[str, str], port: int) -> bool:
    """Return whether the policies let a caller reach a port of a pod with these labels: all may where no policy selects the pod."""
    policies = [p["spec"] for p in of_kind(docs, "NetworkPolicy") if "Ingress" in p["spec"]["policyTypes"]]
    choosing = [spec for spec in policies if selects(labels, spec["podSelector"])]
    rules = [rule for spec in choosing for rule in spec.get("ingress") or []]
    return not choosing or any(_has_port(rule, port) and any(_is_from(caller, peer) for peer in rule.get("from", [{}])) for rule in rules)


def _has_port(rule: Doc, port: int) -> bool:
    return "ports" not in rule or any(entry.get("port", port) == port for entry in rule["ports"])


def _is_from(caller: Caller, peer: Doc) -> bool:
    if "namespaceSelector" in peer:
        there = selects({"kubernetes.io/metadata.name": caller.namespace}, peer["namespaceSelector"])
    else:
        there = caller.namespace == NAMESPACE
    return there and selects(caller.labels, peer.get("podSelector", {}))
