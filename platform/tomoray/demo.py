"""The demo: the jobs that it runs one after the other, and the page that shows what came of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tomoray import storage
from tomoray.catalogue import CatalogueRow, read_row_picks
from tomoray.formats import open_tomogram
from tomoray.formats.czii import read_czii_csv
from tomoray.jobs import DemoJob, ScoreJob
from tomoray.report import draw_picks, write_report
from tomoray.scoring import score_picks
from tomoray.tomogram import Picks


def demo_jobs(job: DemoJob) -> dict[str, Any]:
    """Return the jobs of the demo in order, their files all in its folder, picking and scoring only what was held back."""
    data, catalogue, runs, picks, score = (storage.join(job.output, name) for name in ("data", "catalogue.parquet", "runs", "picks", "score"))
    picker = storage.join(runs, job.train.name, "picker")
    return {
        "simulate": job.simulate.model_copy(update={"output": data}),
        "index": job.index.model_copy(update={"source": data, "output": catalogue}),
        "train": job.train.model_copy(update={"catalogue": catalogue, "output": runs}),
        "pick": job.pick.model_copy(update={"catalogue": catalogue, "output": picks, "checkpoint": picker, "splits": ("test",)}),
        "score": ScoreJob(catalogue=catalogue, picks=picks, output=score, splits=("test",), particles=job.train.particles),
    }


def look(job: ScoreJob, rows: Sequence[CatalogueRow]) -> tuple[str, str]:
    """Draw the first of the scored tomograms with picks and truth, and write the report of all; return where report and picture are."""
    picks = {p.run: p for p in read_czii_csv(storage.join(job.picks, "picks.csv"))}
    first = rows[0]
    picture, report = storage.join(job.output, f"{first.run}.png"), storage.join(job.output, "report.html")
    draw_picks(picture, open_tomogram(first.uri, name=first.run), picks.get(first.run, Picks.concatenate(first.run, [])), read_row_picks(first))
    scores = score_picks([read_row_picks(row) for row in rows], list(picks.values()))
    files = {"picks": job.picks, "catalogue": job.catalogue}
    write_report(report, "tomoray demo", scores=scores, pictures={first.run: picture}, files=files)
    return report, picture
