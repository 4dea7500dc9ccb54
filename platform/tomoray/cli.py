"""The command line: `tomoray VERB [JOB.toml] [--key value ...] [--set a.b=value ...] [--dry-run]`."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads starve what else runs on the cores

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

import tomoray
from tomoray.config import ConfigError, Settings, dump_settings, parse_assignments, parse_value, read_settings
from tomoray.jobs import JOBS

USER_ERROR = 2
SHORT = {"threshold": ", or the folder of candidates"}  # verbs that need no job file, only this one word
INTERRUPTED = 130  # as shells count a program that Ctrl-C ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb and return the exit status: 0 done, 2 something to correct, 3 done but for what failed, 130 stopped."""
    options = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("tomoray").setLevel(logging.DEBUG if options.verbose else logging.INFO)
    try:
        job = read_settings(JOBS[options.verb], _job_file(options), _overrides(options))
        if options.dry_run:
            print(dump_settings(job), end="")
        from tomoray import commands  # here, so that --help need not wait for torch and Ray

        return commands.run(options.verb, job, dry_run=options.dry_run)
    except (ConfigError, ValueError, OSError) as error:
        if options.verbose:
            raise
        print(f"tomoray {options.verb}: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print(f"tomoray {options.verb}: stopped; what is done is kept, the same command goes on from there", file=sys.stderr)
        return INTERRUPTED


def build_parser() -> argparse.ArgumentParser:
    """Return the parser: one sub-command per verb, one option per key of its job file, each with its default."""
    parser = argparse.ArgumentParser(prog="tomoray", description="Training and batch particle picking for cryo-electron tomography, on Ray.")
    parser.add_argument("--version", action="version", version=f"tomoray {tomoray.__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, model in JOBS.items():
        summary = (model.__doc__ or "").splitlines()[0]
        sub = verbs.add_parser(verb, help=summary, description=f"{summary} Options override the job file.")
        sub.add_argument("job", nargs="?", help=f"job file (TOML){SHORT.get(verb, '')}; see the folder jobs/")
        sub.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any key of the job file, dotted: --set crops.patch_vox=64")
        sub.add_argument("--dry-run", action="store_true", help="check everything, print the job as it would run, and stop")
        sub.add_argument("--verbose", action="store_true", help="more messages, and where an error came from")
        for key, description, default in leaves(model):
            meaning = f"{description} (default: {default})".replace("%", "%%")
            sub.add_argument(f"--{key.replace('_', '-')}", dest=f"key:{key}", metavar="VALUE", help=meaning)
    return parser


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
