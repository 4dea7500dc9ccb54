"""The Grafana dashboard asks for metrics that Ray has, and labels that they carry."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

from manifests import of_kind, world

METRIC = re.compile(r"\bray_(?:node|data|memory|tasks|actors|object)[a-z_]*")
LABELS_OF_RAY = {"instance", "Name", "State", "Location", "Source", "dataset", "operator"}


def dashboard() -> dict[str, Any]:
    (found,) = [doc for doc in of_kind(world("gpu-pool"), "ConfigMap") if doc["metadata"].get("labels", {}).get("grafana_dashboard") == "1"]
    return dict(json.loads(found["data"]["tomoray.json"]))


def queries() -> list[str]:
    return [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]


def metrics_of_ray() -> set[str]:
    """The metrics that Ray's own dashboards show."""
    spec = importlib.util.find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "dashboard" / "modules" / "metrics" / "dashboards"
    return {name for path in folder.glob("*_panels.py") for name in METRIC.findall(path.read_text())}


def test_every_metric_is_one_of_rays() -> None:
    """Planted: a metric that has been renamed."""
    known = metrics_of_ray()
    assert len(queries()) > 10
    assert {name for query in queries() for name in METRIC.findall(query)} - known == set()
    assert "ray_node_gpu_utilisation" not in known


def test_every_label_is_rays_or_the_monitors() -> None:
    (monitor,) = of_kind(world("gpu-pool"), "PodMonitor")
    added = {rule["targetLabel"] for endpoint in monitor["spec"]["podMetricsEndpoints"] for rule in endpoint["relabelings"]}
    used = {label.strip() for query in queries() for group in re.findall(r"by \(([^)]*)\)", query) for label in group.split(",")}
    used |= {label for query in queries() for label in re.findall(r"(\w+)\s*(?:=~|!~|=)", query)}
    assert used - LABELS_OF_RAY - added == set()
    assert {"ray_io_cluster", "State"} <= used
    shown = {name for panel in dashboard()["panels"] for target in panel["targets"] for name in re.findall(r"{{(\w+)}}", target["legendFormat"])}
    assert shown <= used


def test_panels_lie_side_by_side() -> None:
    places = [panel["gridPos"] for panel in dashboard()["panels"]]
    cells = [(x, y) for p in places for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    ids = [panel["id"] for panel in dashboard()["panels"]]
    assert len(ids) == len(set(ids))
