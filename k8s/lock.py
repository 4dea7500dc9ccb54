"""Write the lock files of the image from what pip would install, as the reports that it writes say. From the repository's root:

    pip="pip install --dry-run --ignore-installed --constraint .ci/constraints.txt"
    $pip --report gpu.json . boto3 psycopg2-binary
    $pip --report cpu.json --extra-index-url "$TORCH_INDEX" . boto3 psycopg2-binary
    $pip --report build.json hatchling
    python k8s/lock.py gpu.json cpu.json build.json

with Python 3.11 on Linux x86-64, and the index of PyTorch's CPU wheels in TORCH_INDEX (its installation page names it).
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
HEADER = "# {what}, for Python 3.11 on Linux x86-64. Written by k8s/lock.py; do not edit.\n"


def pins(report: str) -> dict[str, str]:
    """Return name -> line of a lock file, of everything in one of pip's reports but what was built from source: that is tomoray itself."""
    lines = {}
    for item in json.loads(Path(report).read_text())["install"]:
        name = re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower()
        version = item["metadata"]["version"].partition("+")[0]  # 2.13.0+cpu satisfies ==2.13.0
        if archive := item["download_info"].get("archive_info"):
            lines[name] = f"{name}=={version} --hash=sha256:{archive['hashes']['sha256']}\n"
    return lines


def write(name: str, what: str, lines: dict[str, str]) -> None:
    """Write one lock file."""
    (HERE / name).write_text(HEADER.format(what=what) + "".join(lines[key] for key in sorted(lines)))


def main(gpu_report: str, cpu_report: str, build_report: str) -> None:
    """Write what both images need to one file, and what only one of them needs to another each."""
    gpu, cpu = pins(gpu_report), pins(cpu_report)
    both = {name: line for name, line in gpu.items() if cpu.get(name) == line}
    write("requirements.lock", "What both images need", both)
    write("requirements-gpu.lock", "PyTorch with CUDA", {name: line for name, line in gpu.items() if name not in both})
    write("requirements-cpu.lock", "PyTorch without CUDA", {name: line for name, line in cpu.items() if name not in both})
    write("requirements-build.lock", "What builds the wheel", pins(build_report))


if __name__ == "__main__":
    main(*sys.argv[1:])
