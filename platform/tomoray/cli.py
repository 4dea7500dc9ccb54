"""The command line: `tomoray VERB [JOB.toml] [--key value ...] [--set a.b=value ...] [--dry-run]`, and `tomoray submit JOB.toml ...`."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads starve what else runs on the cores

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

import tomoray
from tomoray.config import ConfigError, Settings, dump_settings, parse_assignments, parse_value, read_settings
from tomoray.credentials import redacted
from tomoray.jobs import JOBS
from tomoray.submission import job_for_cluster, verb_of

USER_ERROR = 2
SUBMIT = "submit"
SHORT = {"threshold": ", or the folder of candidates"}  # verbs that need no job file, only this one word
INTERRUPTED = 130  # as shells count a program that Ctrl-C ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb and return the exit status: 0 done, 2 something to correct, 3 done but for what failed, 130 stopped."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    options = build_parser(_verb_to_submit(words)).parse_args(words)
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("tomoray").setLevel(logging.DEBUG if options.verbose else logging.INFO)
    try:
        verb = options.verb if options.verb != SUBMIT else options.as_verb or verb_of(options.job or "")
        job = read_settings(JOBS[verb], _job_file(options), _overrides(options))
        job = job_for_cluster(verb, job, options.root) if options.verb == SUBMIT else job
        if options.dry_run:
            print(dump_settings(job), end="")
        from tomoray import commands  # here, so that --help need not wait for torch and Ray

        if options.verb == SUBMIT:
            name = Path(options.job or f"{verb}.toml").name
            sending = commands.Sending(name, options.address, package=not options.installed, verbose=options.verbose)
            return commands.submit(verb, job, sending, dry_run=options.dry_run)
        return commands.run(verb, job, dry_run=options.dry_run)
    except (ConfigError, ValueError, OSError) as error:
        if options.verbose:
            raise
        print(redacted(f"tomoray {options.verb}: {error}"), file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print(f"tomoray {options.verb}: stopped; what is done is kept, the same command goes on from there", file=sys.stderr)
        return INTERRUPTED


def build_parser(submits: str = "") -> argparse.ArgumentParser:
    """Return the parser: one sub-command per verb, one option per key of its job file, each with its default; `submit` has those of `submits`."""
    parser = argparse.ArgumentParser(prog="tomoray", description="Training and batch particle picking for cryo-electron tomography, on Ray.")
    parser.add_argument("--version", action="version", version=f"tomoray {tomoray.__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, model in JOBS.items():
        summary = (model.__doc__ or "").splitlines()[0]
        sub = verbs.add_parser(verb, help=summary, description=f"{summary} Options override the job file.")
        _add_options(sub, model, f"job file (TOML){SHORT.get(verb, '')}; see the folder jobs/")
    summary = "Run a job file on a Ray cluster elsewhere, show its log, and end with its status."
    sub = verbs.add_parser(SUBMIT, help=summary, description=f"{summary} With a job file, --help shows its keys too.", allow_abbrev=False)
    _add_options(sub, JOBS.get(submits), "job file (TOML), whose name up to the first underscore is the verb")
    sub.add_argument("--address", default="", metavar="URL", help="Ray's job server, as http://HEAD:8265 (default: that of RAY_API_SERVER_ADDRESS)")
    root = os.environ.get("TOMORAY_ROOT", "")
    sub.add_argument("--root", default=root, metavar="URL", help="what relative places lie under, as s3://BUCKET (default: that of TOMORAY_ROOT)")
    sub.add_argument("--verb", dest="as_verb", choices=list(JOBS), help="verb of a job file that is called otherwise")
    sub.add_argument("--installed", action="store_true", help="run the tomoray that is installed there, and send the job file alone")
    return parser


def _add_options(sub: argparse.ArgumentParser, model: type[BaseModel] | None, job: str) -> None:
    """Add what all verbs take, and an option for each key of a job."""
    sub.add_argument("job", nargs="?", help=job)
    sub.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any key of the job file, dotted: --set crops.patch_vox=64")
    sub.add_argument("--dry-run", action="store_true", help="check everything, print the job as it would run, and stop")
    sub.add_argument("--verbose", action="store_true", help="more messages, and where an error came from")
    for key, description, default in leaves(model) if model else ():
        meaning = f"{description} (default: {default})".replace("%", "%%")
        sub.add_argument(f"--{key.replace('_', '-')}", dest=f"key:{key}", metavar="VALUE", help=meaning)


def _verb_to_submit(words: Sequence[str]) -> str:
    """Return the verb of the job that is to be submitted, which says what options there are; empty where none can be told."""
    if not words or words[0] != SUBMIT:
        return ""
    given = [second for first, second in pairwise(words) if first == "--verb"]
    names = [word for word in words[1:] if word.endswith(".toml")]
    try:
        return given[0] if given else verb_of(names[0])
    except (ConfigError, IndexError):  # main says it where options are read
        return ""


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield dotted key, meaning and default of every value in a job file."""
    for name, field in model.model_fields.items():
        inner = [part for part in (field.annotation, *get_args(field.annotation)) if isinstance(part, type) and issubclass(part, BaseModel)]
        if inner and not isinstance(field.default, tuple):
            found: dict[str, tuple[str, str, str]] = {}
            for leaf in (leaf for one in inner for leaf in leaves(one, f"{prefix}{name}.")):
                found.setdefault(leaf[0], leaf)
            yield from found.values()
        else:
            default = "none, it must be given" if field.default is PydanticUndefined else _spell(field.default)
            yield prefix + name, field.description or name, default


def _spell(default: Any) -> str:
    if isinstance(default, tuple) and default and isinstance(default[0], Settings):
        return ", ".join(str(getattr(item, "name", item)) for item in default)
    return "not set" if default is None or default == "" else str(list(default) if isinstance(default, tuple) else default)


def _job_file(options: argparse.Namespace) -> str | None:
    return None if _names_candidates(options) else options.job


def _names_candidates(options: argparse.Namespace) -> bool:
    return options.verb in SHORT and options.job is not None and not options.job.endswith(".toml")


def _overrides(options: argparse.Namespace) -> dict[str, Any]:
    given = {key.removeprefix("key:"): parse_value(value) for key, value in vars(options).items() if key.startswith("key:") and value is not None}
    short = {"candidates": options.job} if _names_candidates(options) else {}
    return short | parse_assignments(options.set) | given
