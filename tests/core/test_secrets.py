"""Keys and passwords: refused in what is saved, blacked out in what is said."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from botocore.exceptions import ClientError

from tomoray import storage
from tomoray.catalogue import CatalogueRow
from tomoray.cli import main
from tomoray.config import ConfigError, read_settings, read_settings_text
from tomoray.jobs import IndexJob, PickJob, TuneJob
from tomoray.tomogram import FormatError

SECRET = "wJalrXUtnFEMI/K7MDENG+key"
ADDRESS = f"https://someone:{SECRET}@host/data"


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (IndexJob, f'source = "{ADDRESS}"'),
        (PickJob, f'checkpoint = ["s3://b/a", "s3://AKIA:{SECRET}@b/p"]'),
        (TuneJob, f'[train]\nstart_from = "{ADDRESS}"'),
        (PickJob, f'checkpoint = 3\nunknown = "{ADDRESS}"'),
        (IndexJob, f'source = "https://host/x?X-Amz-Signature={SECRET}"'),
    ],
)
def test_jobs_hold_no_credentials(model, text: str) -> None:
    """Jobs are saved beside what they make, sent, and logged. Planted: lists, and tables within tables, not looked into."""
    with pytest.raises(ConfigError, match=r"holds credentials; .* must come from the environment .*: take them out") as error:
        read_settings_text(model, text, "job.toml")
    assert SECRET not in str(error.value)
    assert "***" in str(error.value)


def test_options_hold_none_either(capsys: pytest.CaptureFixture[str]) -> None:
    """Planted: the option shown as it was given."""
    for options in (["--source", ADDRESS], ["--set", f"source={ADDRESS}"], ["--set", ADDRESS], ["--validation", ADDRESS]):
        assert main(["index", *options, "--dry-run"]) == 2
        captured = capsys.readouterr()
        assert SECRET not in captured.out + captured.err
    assert read_settings(IndexJob, overrides={"source": "https://host:8080/a@b"}).source == "https://host:8080/a@b"


def test_a_fault_beside_a_secret_of_ours_does_not_show_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    with pytest.raises(ConfigError, match="views") as error:
        read_settings(PickJob, overrides={"views": SECRET})
    assert SECRET not in str(error.value)


def test_catalogues_hold_no_credentials() -> None:
    row = CatalogueRow("TS_1", "TS_1", "s3://b/x", (8, 8, 8), "float32", 10.0, 0.0, 1.0, -1.0, 1.0, "dark")
    for key in ("uri", "picks_uri"):
        with pytest.raises(FormatError, match=r"TS_1: (picks_)?uri 'https://\*\*\*@host/data' holds credentials; .*: take them out") as error:
            replace(row, **{key: ADDRESS})
        assert SECRET not in str(error.value)


@pytest.mark.parametrize("code", ["SignatureDoesNotMatch", "AccessDenied"])
def test_what_storage_says_is_blacked_out(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries put addresses, and servers put keys, into what they say."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    answer = ClientError({"Error": {"Code": code, "Message": f"{ADDRESS} with {SECRET}"}}, "GetObject")
    for raised in (answer, PermissionError(str(answer))):
        with pytest.raises(OSError, match=r"access refused|did not answer as it must") as error, storage.plain_errors("s3://b/x"):
            raise raised
        assert SECRET not in str(error.value)


def test_the_environment_does_not_reach_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job as it is printed and saved, and the page of a run, hold settings only."""
    from tomoray.checkpoint import Card, save_checkpoint
    from tomoray.config import dump_settings
    from tomoray.report import training_page
    from tomoray.tomogram import Particle

    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "MLFLOW_TRACKING_PASSWORD", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, f"{name}-{SECRET}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql://mlflow:{SECRET}@db/mlflow")
    card = Card((Particle("x", 60.0),), 10.0, "dark", network={"name": "asymmetric_unet", "width": 2, "blocks": [1]})
    card = card.with_thresholds({"x": 0.5}, {"f1": {"value": 0.5, "runs": ["a"]}})
    save_checkpoint(tmp_path, card, card.build(), job=dump_settings(PickJob()), state={"epochs": 1})
    training_page(tmp_path, "train", card, {"picker": "/p"})
    written = [path.read_bytes() for path in tmp_path.iterdir()]
    assert len(written) == 5
    assert not any(SECRET.encode() in content for content in written)
    assert np.all([b"postgresql" not in content for content in written])
