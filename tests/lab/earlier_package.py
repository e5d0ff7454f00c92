"""The qsysd package of an earlier commit, built once by its own `make deb` and kept in the lab's cache."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from labhost import cache_folder
from labproc import LabError, locked, run, say

REPOSITORY = Path(__file__).parents[2]
BUILD_TIMEOUT = 300.0  # seconds


def ensure(lab: Path, commit: str) -> Path:
    """Return the package of a commit, built first if the cache does not have it (a few seconds).

    commit: the whole id. It is fetched from `origin` where the clone does not have it. Raises LabError.
    """
    cache = cache_folder(lab)
    kept = cache / f"qsysd-{commit[:12]}.deb"
    if not kept.is_file():
        with locked(cache / "package.lock", "another build of an earlier package"):
            if not kept.is_file():
                build(commit, kept)
    return kept


def build(commit: str, kept: Path) -> None:
    """Build the package of a commit from a copy of its sources, and move it to its place."""
    say(f"building the package of {commit[:12]}, once")
    folder = Path(tempfile.mkdtemp(prefix="qsysd-package-"))
    try:
        archive = folder / "sources.tar"
        sources = folder / "sources"
        sources.mkdir()
        export(commit, archive, folder)
        run(["tar", "--extract", f"--file={archive}", f"--directory={sources}"])
        run(["make", f"--directory={sources}", "--silent", "deb"], timeout=BUILD_TIMEOUT)
        (built,) = sources.glob("build/qsysd_*_all.deb")
        part = kept.with_name(f".{kept.name}.{os.getpid()}")
        shutil.copyfile(built, part)
        part.rename(kept)
    finally:
        shutil.rmtree(folder)


def export(commit: str, archive: Path, folder: Path) -> None:
    """Write a commit's sources as a tar file. Raises LabError where the commit is nowhere."""
    repository = REPOSITORY
    if git(repository, "cat-file", "-e", f"{commit}^{{commit}}", check=False) is None:
        repository = folder / "fetched.git"
        origin = git(REPOSITORY, "remote", "get-url", "origin", check=False)
        if origin is None:
            raise LabError(
                f"{REPOSITORY} is not a git clone with commit {commit}, and has no remote `origin`"
            )
        say(f"fetching {commit[:12]} from {origin}")
        run(["git", "init", "--quiet", "--bare", str(repository)])
        # Into another repository: root must not leave objects in a user's clone.
        local = (REPOSITORY / origin).resolve()
        address = str(local) if local.exists() else origin
        git(repository, "fetch", "--quiet", "--depth=1", address, commit)
    git(repository, "archive", f"--output={archive}", commit)


def git(repository: Path, *arguments: str, check: bool = True) -> str | None:
    """Run git in a repository of any owner; return its output, None if it failed and `check` is off."""
    argv = ["git", "-c", "safe.directory=*", "-C", str(repository), *arguments]
    done = run(argv, check=check, timeout=120)
    return done.stdout.strip() if done.returncode == 0 else None
