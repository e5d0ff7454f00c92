"""The progress of a build while it runs, and the reason for which it failed."""

from __future__ import annotations

import pytest

from qsysd.images.progress import BuildProgress

UPDATE = ["I: running apt-get update...", "Get:1 http://deb.example trixie InRelease [140 kB]"]
ESSENTIAL = [
    "I: downloading packages with apt...",
    "0 upgraded, 3 newly installed, 0 to remove",
    "Get:1 x",
    "Get:2 x",
]
REST = [
    "I: installing remaining packages inside the chroot...",
    "0 upgraded, 4 newly installed, 0 to remove and 0 not upgraded.",
    *[f"Get:{number} http://deb.example trixie/main amd64 p{number}" for number in range(4)],
    *["Unpacking a (1) ...", "Unpacking b (1) ...", "Setting up a (1) ...", "Setting up b (1) ..."],
    *["Unpacking c (1) ...", "Unpacking d (1) ...", "Setting up c (1) ...", "Setting up d (1) ..."],
]


class Run:
    """A build of which each line takes `step` seconds."""

    def __init__(self, step: float) -> None:
        self.time = 0.0
        self.step = step
        self.lines: list[str] = []
        self.progress = BuildProgress(self.lines.append, lambda: self.time)

    def update(self, *lines: str | None) -> list[str]:
        for line in lines:
            self.time += self.step
            self.progress.update(line)
        return self.lines


def test_each_step_is_reported_when_it_begins() -> None:
    lines = Run(0.0).update(*UPDATE, *ESSENTIAL, *REST, "qsysd: file system", "qsysd: compressing")
    assert [line.partition(" (")[0].partition(",")[0] for line in lines] == [
        "reading package lists",
        "downloading the base system",
        "downloading the packages",
        "installing the packages",
        "creating the file system",
        "packing the image",
    ]


def test_progress_is_reported_every_three_seconds_of_silence() -> None:
    lines = Run(1.0).update("I: extracting archives...", *[None] * 7)
    assert lines == [
        "unpacking the base system (1 s)",
        "unpacking the base system (4 s)",
        "unpacking the base system (7 s)",
    ]


def test_progress_only_grows_to_the_number_of_packages() -> None:
    run = Run(3.0)
    lines = [line for line in run.update(*REST) if line.startswith("installing")]
    counts = [int(line.split(", ")[1].split(" of ")[0]) for line in lines]
    assert counts == sorted(counts)
    assert counts[-1] == 4
    assert all(" of 4 " in line for line in lines)


def test_the_number_of_packages_is_recorded() -> None:
    run = Run(0.0)
    run.update("qsysd: packages 211")
    assert run.progress.packages == 211


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["Reading...", "E: Unable to locate package nope", "E: run_chroot failed: E: apt-get failed"],
         "E: Unable to locate package nope"),
        (["mke2fs: No space left on device", "more"], "mke2fs: No space left on device"),
        (["something odd happened"], "something odd happened"),
        ([], ""),
    ],
)  # fmt: skip
def test_reason_is_the_first_error(lines: list[str], reason: str) -> None:
    run = Run(0.0)
    run.update(*lines)
    assert run.progress.reason() == reason


def test_tail_is_short() -> None:
    run = Run(0.0)
    run.update(*[f"line {number}" for number in range(100)])
    assert run.progress.tail().splitlines()[1:] == [f"line {number}" for number in range(92, 100)]
