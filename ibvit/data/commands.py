"""``ibvit data …``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

Tree = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]


@dataclass(frozen=True)
class Check:
    """Decode every image of DIR/train and DIR/val; name the broken and the odd ones; exit code 1 if any is broken."""

    folder: Tree
    """Folder with train/<class>/* and val/<class>/*."""
    workers: int | None = None
    """Threads (default: the number of cores)."""

    def run(self) -> None:
        from ibvit.data.files.check import check_tree

        sys.exit(check_tree(self.folder, self.workers) > 0)


@dataclass(frozen=True)
class Pack:
    """Decode DIR/train and DIR/val into DIR/train.pack and DIR/val.pack, which training then reads by itself."""

    folder: Tree
    """Folder with train/<class>/* and val/<class>/*."""
    workers: int | None = None
    """Threads (default: the number of cores)."""

    def run(self) -> None:
        from ibvit.data.cache.making import pack_tree

        pack_tree(self.folder, self.workers)


@dataclass(frozen=True)
class ImageNet100:
    """Make the ImageNet-100 tree (Tian et al. 2020) from an ImageNet-1k tree."""

    imagenet: Path
    """Folder with train/<id>/* and val/<id>/*, or a flat val with its official ground truth."""
    out: Path
    """Folder to make."""
    how: Literal["link", "copy"] = "link"
    """Symbolic links to the images, or copies."""

    def run(self) -> None:
        from ibvit.data.files.imagenet100 import make_tree

        make_tree(self.imagenet, self.out, self.how)


DataCommand = tyro.conf.OmitSubcommandPrefixes[
    tyro.conf.OmitArgPrefixes[
        Annotated[Check, tyro.conf.subcommand("check")]
        | Annotated[Pack, tyro.conf.subcommand("pack")]
        | Annotated[ImageNet100, tyro.conf.subcommand("imagenet100")]
    ]
]
