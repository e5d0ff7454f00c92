"""qsysd image: one file per verb."""

from __future__ import annotations

from qsysd.cli.image import build, import_file, info, rm
from qsysd.cli.image import list as list_images
from qsysd.cli.usage import Commands

command = Commands(
    "image",
    help="Base images: the disks of VMs are overlays on them.",
    subcommand_metavar="VERB [ARGS]...",
    commands=[build.command, import_file.command, list_images.command, info.command, rm.command],
)
