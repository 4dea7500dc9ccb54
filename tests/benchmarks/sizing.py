"""GPU hours and dollars for a number of tomograms; prints the table of docs/operations.md.

    python tests/benchmarks/sizing.py [--tomograms 500 5000 50000] [--busy 0.9] [--machine "name, seconds per tomogram, dollars per hour" ...]

    hours   = tomograms * seconds / 3600 / busy        of one machine; n machines take an n-th, up to where operations.md says it bends
    dollars = hours * price

`seconds` is what one tomogram keeps the predicting machine for, `busy` the share of time for which it has one to predict (the `device_busy_share`
that `tomoray pick` records).
"""

import argparse

MACHINES = (
    "two CPU cores with AMX (measured), 18.3, 0.10",
    "L40S (the paper's figure), 0.66, 1.80",
    "L40S with 4 views (four times that), 2.64, 1.80",
)


def table(tomograms: list[int], machines: list[str], busy: float) -> str:
    """Return the table as Markdown."""
    lines = [
        "| one machine | seconds | $ per hour | " + " | ".join(f"{count:,}" for count in tomograms) + " |",
        "|---|---:|---:|" + "---:|" * len(tomograms),
    ]
    for machine in machines:
        name, seconds, price = (part.strip() for part in machine.rsplit(",", 2))
        hours = [count * float(seconds) / 3600 / busy for count in tomograms]
        cells = [f"{h:.2g} h, ${h * float(price):.2f}" if h < 10 else f"{h:.0f} h, ${h * float(price):.0f}" for h in hours]
        lines.append(f"| {name} | {float(seconds):g} | {float(price):.2f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tomograms", type=int, nargs="+", default=[500, 5000, 50000])
    parser.add_argument("--busy", type=float, default=0.9)
    parser.add_argument("--machine", nargs="+", default=MACHINES)
    options = parser.parse_args()
    print(table(options.tomograms, options.machine, options.busy))
