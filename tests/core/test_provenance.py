"""Which commit the package is of, and that another project's commit is never taken for it."""

import subprocess
from pathlib import Path

import pytest

import tomoray
from tomoray.provenance import commit

IDENTITY = ("-c", "user.name=x", "-c", "user.email=x@y.z", "-c", "commit.gpgsign=false")


def git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(folder), *IDENTITY, *words], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package in a checkout of one commit, which does not know it yet."""
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    package = tmp_path / "checkout" / "platform" / "tomoray"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (tmp_path / "checkout" / "other.txt").write_text("1")
    monkeypatch.setattr(tomoray, "__file__", str(package / "__init__.py"))
    git(tmp_path / "checkout", "init", "--quiet")
    git(tmp_path / "checkout", "add", "other.txt")
    git(tmp_path / "checkout", "commit", "--quiet", "--message", "x")
    return package


def test_the_commit_of_a_checkout_says_whether_the_package_changed(package: Path) -> None:
    """Planted: a package that is installed below another project's checkout given that one's commit; changes elsewhere taken for ours."""
    assert commit() == "", "not a file of this checkout"
    git(package, "add", ".")
    git(package, "commit", "--quiet", "--message", "y")
    head = git(package, "rev-parse", "HEAD")
    (package.parents[1] / "other.txt").write_text("2")
    assert commit() == head
    (package / "__init__.py").write_text("x = 1\n")
    assert commit() == f"{head}-dirty"


def test_a_package_that_was_sent_says_its_commit_itself(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert commit() == "", "there is no git"
    (package / "COMMIT").write_text("abc\n")
    assert commit() == "abc"
