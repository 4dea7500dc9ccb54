"""What a person looks at after a run: pictures of picks in their tomogram, and one page that holds everything."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tomoray import storage
from tomoray.checkpoint import Card
from tomoray.score_table import score_note, score_rows
from tomoray.scoring import Score
from tomoray.tomogram import CZII_PARTICLES, Particle, Picks, Tomogram

COLOURS = ("#4cc9f0", "#c77dff", "#ffd60a", "#ff4d4d", "#52e06a", "#ff9f1c", "#ff8fd0", "#a0e8d5")  # bright: they lie on grey
TRUTH_MARGIN = 0.008  # truth is drawn larger by this share of the picture's width, so that a pick does not hide it
SLAB_VOX = 5
CONTRAST_PERCENTILES = (0.5, 99.5)
PANEL_INCHES = 5.2
LEGEND_INCHES = 2.3  # width of an entry
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #1f2328; max-width: 72rem; margin: 2rem auto; padding: 0 1rem }}
h1 {{ font-size: 1.6rem; margin-bottom: 0 }} h2 {{ font-size: 1.1rem; margin: 2rem 0 .5rem }} p {{ margin: .4rem 0; color: #59636e }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums }}
th, td {{ padding: .25rem .8rem; text-align: right; border-bottom: 1px solid #d8dee4 }}
th:first-child, td:first-child, .text td, .text th {{ text-align: left }}
th {{ font-weight: 600; border-bottom: 2px solid #8c959f }} .total tr:last-child td {{ font-weight: 600; border-bottom: 0 }}
figure {{ margin: 1rem 0 }} img {{ max-width: 100%; border-radius: 4px }} figcaption {{ color: #59636e }}
</style></head><body>
<h1>{title}</h1>
{body}
</body></html>
"""


def draw_picks(
    path: storage.Uri,
    tomogram: Tomogram,
    picks: Picks,
    truth: Picks | None = None,
    particles: Sequence[Particle] = CZII_PARTICLES,
    *,
    slices: int | Sequence[int] = 3,
) -> None:
    """Write a PNG of a few z-slices with a circle around every particle, one colour per class.

    A circle is the particle's sphere cut by the slab of slices that is shown (their mean), so it is smaller the farther its centre
    lies above or below; spheres that do not reach the slab are left out. Picks are solid, the truth dashed and a little
    larger: solid alone is a false pick, dashed alone a miss, two colours a wrong class. The legend counts the whole tomogram.

    Parameters
    ----------
    slices
        How many, evenly spaced; or the z indices of their centres.

    Raises
    ------
    ValueError
        If a class is not among the particles.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    _check_drawable([picks] if truth is None else [picks, truth], particles)
    slabs = [_slab(z, tomogram.shape[0]) for z in _slice_centres(slices, tomogram.shape[0])]
    images = [_finite(tomogram.read((slab, slice(None), slice(None)))).mean(axis=0) for slab in slabs]
    low, high = np.percentile(np.stack(images), CONTRAST_PERCENTILES)
    _, height, width = np.multiply(tomogram.shape, tomogram.voxel_angstrom)
    panel_height = PANEL_INCHES * min(max(height / width, 0.4), 2.0)
    handles = _legend_handles(picks, truth, particles)
    columns = max(1, int(PANEL_INCHES * len(slabs) / LEGEND_INCHES))
    rest = 0.85 + 0.22 * math.ceil(len(handles) / columns)  # titles above, legend below
    figure = Figure(figsize=(PANEL_INCHES * len(slabs), panel_height + rest), layout="constrained")
    FigureCanvasAgg(figure)
    for slab, image, axes in zip(slabs, images, figure.subplots(1, len(slabs), squeeze=False)[0], strict=True):
        axes.imshow(image, cmap="gray", vmin=low, vmax=high, extent=(0, width, height, 0), interpolation="nearest")
        _draw_circles(axes, slab, tomogram, picks, particles, truth=False)
        if truth is not None:
            _draw_circles(axes, slab, tomogram, truth, particles, truth=True)
        _draw_scale_bar(axes, width, height)
        axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
        axes.set_title(f"z {slab.start}-{slab.stop - 1} of {tomogram.shape[0]}", fontsize=10)
    figure.suptitle(tomogram.name, parse_math=False, fontweight="bold")
    for text in figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9).get_texts():
        text.set_parse_math(False)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=150)
    storage.write_bytes(path, png.getvalue())


def training_page(folder: storage.Uri, title: str, card: Card, files: Mapping[str, Any]) -> str:
    """Write the page of a training run into its folder, from the card of its picker, and return where it is."""
    f1 = card.validation["f1"]
    facts = {f"F1 at half the radius, {len(f1['runs'])} validation tomograms": f"{f1['value']:.3f}"}
    facts |= {f"threshold of {name}": f"{value:.2f}" for name, value in card.thresholds.items()}
    facts |= {f"to expect of {name} elsewhere": f"{value:.2f}" for name, value in card.validation.get("expected", {}).items()}
    facts |= {"method": card.method, "network": card.network["name"], "voxel size": f"{card.voxel_angstrom:g} angstrom", "contrast": card.contrast}
    where = storage.join(folder, "report.html")
    write_report(where, title, facts=facts, files=files)
    return where


def write_report(
    path: storage.Uri,
    title: str,
    *,
    facts: Mapping[str, Any] | None = None,
    scores: Mapping[str, Score] | None = None,
    tomograms: Sequence[Mapping[str, Any]] = (),
    pictures: Mapping[str, storage.Uri] | None = None,
    files: Mapping[str, Any] | None = None,
) -> None:
    """Write one HTML page, complete in itself: styles and pictures are inside, there are no scripts.

    Parameters
    ----------
    facts
        Lines below the title: what was run, with which picker, when.
    scores
        As `scoring.score_picks` returns them; shown as a table per class.
    tomograms
        One per tomogram: `name`, and `counts` (class -> number of picks), `wall_s` (seconds) or, where it failed, `reason`.
    pictures
        Caption -> PNG file.
    files
        What -> where it lies.
    """
    failed = [t for t in tomograms if t.get("reason")]
    picked = [t for t in tomograms if not t.get("reason")]
    sections = [
        _section("", _table(_pairs(facts or {}), "text", header=False)),
        _section("Scores", _scores(scores)) if scores else "",
        _section("Tomograms", f"<p>{escape(_summary(picked, failed))}</p>") if tomograms else "",
        _section("Failed", _table([{"tomogram": t["name"], "reason": t["reason"]} for t in failed], "text")),
        _section("Pictures", "\n".join(_figure(caption, picture) for caption, picture in (pictures or {}).items())),
        _section("Picks per tomogram", _table(_count_rows(picked), "total")),
        _section("Files", _table(_pairs(files or {}), "text", header=False)),
    ]
    page = PAGE.format(title=escape(title), body="\n".join(section for section in sections if section))
    storage.write_bytes(path, page.encode("utf-8"))


def colours_of(particles: Sequence[Particle]) -> dict[str, str]:
    """Return the colour of each class, the same in every picture that is drawn for these particles."""
    return {p.name: COLOURS[k % len(COLOURS)] for k, p in enumerate(particles)}


def _check_drawable(parts: Sequence[Picks], particles: Sequence[Particle]) -> None:
    known = [p.name for p in particles]
    for part in parts:
        unknown = sorted(set(part.names.tolist()) - set(known))
        if unknown:
            raise ValueError(
                f"picks of {part.run!r}: no radius for class {', '.join(map(repr, unknown))}; known are {', '.join(known)}: add it to the particles"
            )


def _slice_centres(slices: int | Sequence[int], depth: int) -> list[int]:
    if isinstance(slices, int):
        return [int((k + 0.5) * depth / slices) for k in range(slices)]
    return list(slices)


def _slab(z: int, depth: int) -> slice:
    start = min(max(z - SLAB_VOX // 2, 0), max(depth - SLAB_VOX, 0))
    return slice(start, min(start + SLAB_VOX, depth))


def _finite(values: NDArray[Any]) -> NDArray[np.float32]:
    return np.nan_to_num(values.astype(np.float32), posinf=0.0, neginf=0.0)


def _draw_circles(axes: Any, slab: slice, tomogram: Tomogram, picks: Picks, particles: Sequence[Particle], *, truth: bool) -> None:
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Circle

    margin = TRUTH_MARGIN * tomogram.shape[2] * tomogram.voxel_angstrom[2] if truth else 0.0
    style = {"linestyle": (0, (3, 2)), "linewidth": 1.1} if truth else {"linewidth": 1.5}
    for particle in particles:
        positions = picks.of(particle.name).positions_zyx
        radii = _cut_radii(positions[:, 0], particle.radius_angstrom, slab, tomogram.voxel_angstrom[0])
        circles = [Circle((x, y), r + margin) for (_, y, x), r in zip(positions, radii, strict=True) if r > 0]
        axes.add_collection(PatchCollection(circles, facecolor="none", edgecolor=colours_of(particles)[particle.name], **style))


def _cut_radii(z_angstrom: NDArray[np.float64], radius_angstrom: float, slab: slice, voxel_angstrom: float) -> NDArray[np.float64]:
    """Return the radius of each sphere's largest section within the slab; zero where it does not reach it."""
    nearest = np.clip(z_angstrom, slab.start * voxel_angstrom, slab.stop * voxel_angstrom)
    return np.sqrt(np.maximum(radius_angstrom**2 - (z_angstrom - nearest) ** 2, 0.0))


def _draw_scale_bar(axes: Any, width_angstrom: float, height_angstrom: float) -> None:
    from matplotlib.patheffects import withStroke

    length_nm = _round_length(width_angstrom / 10 / 4)
    x, y = 0.04 * width_angstrom, height_angstrom - 0.04 * width_angstrom
    outline = [withStroke(linewidth=5, foreground="black")]
    axes.plot([x, x + 10 * length_nm], [y, y], color="white", linewidth=3, solid_capstyle="butt", path_effects=outline)
    label = {"color": "white", "fontsize": 9, "path_effects": [withStroke(linewidth=2, foreground="black")]}
    axes.annotate(f"{length_nm:g} nm", (x, y), xytext=(0, 5), textcoords="offset points", **label)


def _round_length(longest: float) -> float:
    """Return the largest of 1, 2, 5, 10, 20, 50 ... that is not longer."""
    power = 10.0 ** math.floor(math.log10(longest))
    return max(step * power for step in (1, 2, 5) if step * power <= longest)


def _legend_handles(picks: Picks, truth: Picks | None, particles: Sequence[Particle]) -> list[Any]:
    from matplotlib.lines import Line2D

    ring: dict[str, Any] = {"linewidth": 0, "marker": "o", "markersize": 9, "markerfacecolor": "none", "markeredgewidth": 1.8}
    handles = []
    for name, colour in colours_of(particles).items():
        found, there = len(picks.of(name)), len(truth.of(name)) if truth is not None else 0
        if found or there:
            label = f"{found} {name}" + (f" (truth: {there})" if truth is not None else "")
            handles.append(Line2D([], [], color=colour, label=label, **ring))
    if truth is not None:
        handles += [Line2D([], [], color="0.4", label="pick"), Line2D([], [], color="0.4", linestyle=(0, (3, 2)), label="truth")]
    return handles or [Line2D([], [], linewidth=0, label="no picks")]


def _section(heading: str, content: str) -> str:
    return (f"<h2>{heading}</h2>\n" if heading else "") + content if content else ""


def _scores(scores: Mapping[str, Score]) -> str:
    return _table(score_rows(scores), "total") + f"\n<p>{escape(score_note(next(iter(scores.values()))))}</p>"


def _summary(picked: Sequence[Mapping[str, Any]], failed: Sequence[Mapping[str, Any]]) -> str:
    count = sum(sum(t.get("counts", {}).values()) for t in picked)
    text = f"{len(picked)} of {len(picked) + len(failed)} tomograms picked, {len(failed)} failed; {count} picks"
    seconds = [float(t["wall_s"]) for t in picked if t.get("wall_s") is not None]
    return text + (f"; {median(seconds):.1f} seconds per tomogram (median)." if seconds else ".")


def _count_rows(picked: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a line per tomogram with its picks of each class, and one with the sums."""
    if not picked:
        return []
    names = list(dict.fromkeys(name for t in picked for name in t.get("counts", {})))
    rows = [{"tomogram": t["name"]} | {name: t.get("counts", {}).get(name, 0) for name in names} for t in picked]
    rows.append({"tomogram": "all"} | {name: sum(row[name] for row in rows) for name in names})
    timed = [t.get("wall_s") for t in picked]
    seconds = [*timed, sum(s for s in timed if s is not None)]
    return [row | {"seconds": "" if s is None else f"{s:.1f}"} for row, s in zip(rows, seconds, strict=True)]


def _pairs(table: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"what": key, "value": value} for key, value in table.items()]


def _table(rows: Sequence[Mapping[str, Any]], kind: str, *, header: bool = True) -> str:
    if not rows:
        return ""
    lines = [_line(rows[0], "th")] if header else []
    return f'<table class="{kind}">\n' + "\n".join([*lines, *(_line(row.values(), "td") for row in rows)]) + "\n</table>"


def _line(cells: Iterable[Any], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"


def _figure(caption: str, picture: storage.Uri) -> str:
    data = base64.b64encode(storage.read_bytes(picture)).decode("ascii")
    return f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{data}"><figcaption>{escape(caption)}</figcaption></figure>'
