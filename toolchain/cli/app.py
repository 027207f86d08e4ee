"""The root command and its verbs."""

from __future__ import annotations

import click

from toolchain import DISTRIBUTION
from toolchain.cli import layout
from toolchain.cli.backbones import backbones
from toolchain.cli.bench import bench
from toolchain.cli.boundary import BoundedGroup
from toolchain.cli.build import build
from toolchain.cli.check import check
from toolchain.cli.completion import completion
from toolchain.cli.doctor import doctor
from toolchain.cli.export import export
from toolchain.cli.inspect import inspect
from toolchain.cli.memory import memory
from toolchain.cli.recipes import recipes
from toolchain.cli.run import run
from toolchain.cli.train import train

_EXAMPLE = layout.example(
    "da3 recipes ls",
    "da3 export --domain cars --train",
    "da3 check dist/cars.da3b",
    "da3 run --domain cars photo.jpg",
)
_CODES = "Exit codes: 0 done, 1 error, 2 usage, 3 parity failed, 4 verification failed."


@click.group(
    cls=BoundedGroup,
    epilog=f"{_EXAMPLE}\n\n{_CODES}",
    commands=[
        recipes,
        backbones,
        train,
        export,
        check,
        build,
        run,
        bench,
        memory,
        inspect,
        doctor,
        completion,
    ],
)
@click.version_option(package_name=DISTRIBUTION, message="%(prog)s %(version)s")
def root() -> None:
    """One frozen vision backbone, many domains.

    A domain is a small adaptor with a dynamic gate per block and a head (DA3). Train it, export it
    to ONNX as a checked bundle, run it beside others on one backbone.
    """
