"""What thresholds chosen on validation tomograms lose on others, for every picker of a study.

    python tests/benchmarks/threshold_loss.py studies/NAME

Each picker picks the tomograms that the study is scored on. Printed for each: F1 at half the radius with the thresholds of its card, which
are those of its validation, and with those that are best on these very tomograms. No one has the second in practice: it says how well a
picker ranks its candidates, and the difference how much of F1 is a matter of thresholds.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
from pathlib import Path

import torch
from ceilings import machine

from tomoray.catalogue import read_catalogue
from tomoray.checkpoint import JOB, load_picker
from tomoray.config import read_settings
from tomoray.inference import for_inference
from tomoray.jobs import StudyJob, TrainJob
from tomoray.scoring import f1_score
from tomoray.study import Result
from tomoray.thresholds import apply_thresholds, choose_thresholds
from tomoray.validation import find_candidates, known_picks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(machine("cpu", options.threads))
    study = read_settings(StudyJob, options.study / JOB)
    rows = [row for row in read_catalogue(study.catalogue) if row.is_labelled and row.split in study.splits]
    print(f"{'arm':24}{'seed':>5}{'chosen':>9}{'best':>9}{'loss':>9}  best - chosen by class")
    for path in sorted((options.study / "trials").glob("*.json")):
        result = Result.from_json(path.read_text())
        picker, card = load_picker(result.checkpoint)
        job = read_settings(TrainJob, Path(result.checkpoint).parent / JOB)
        lean = for_inference(picker, job.precision)
        truth = [known_picks(row, job) for row in rows]
        candidates = [find_candidates(lean, card, row, job) for row in rows]
        best = {name: choice.threshold for name, choice in choose_thresholds(truth, candidates, card.particles).items()}
        chosen, highest = (f1_score(truth, [apply_thresholds(one, at) for one in candidates], card.particles) for at in (card.thresholds, best))
        lost = [f"{there.name} {there.value - here.value:.3f}" for here, there in zip(chosen.classes, highest.classes, strict=True)]
        loss = highest.value - chosen.value
        print(f"{result.arm:24}{result.seed:>5}{chosen.value:>9.3f}{highest.value:>9.3f}{loss:>9.3f}  {', '.join(lost)}", flush=True)


if __name__ == "__main__":
    main()
