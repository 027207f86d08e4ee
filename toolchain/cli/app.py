"""The root command and the list of its verbs."""

from __future__ import annotations

import click

from toolchain import DISTRIBUTION
from toolchain.cli.boundary import BoundedGroup
from toolchain.cli.show import layout
from toolchain.cli.verbs.backbones import backbones
from toolchain.cli.verbs.bench import bench
from toolchain.cli.verbs.build import build
from toolchain.cli.verbs.check import check
from toolchain.cli.verbs.completion import completion
from toolchain.cli.verbs.device import device
from toolchain.cli.verbs.doctor import doctor
from toolchain.cli.verbs.eval import evaluate
from toolchain.cli.verbs.export import export
from toolchain.cli.verbs.inspect import inspect
from toolchain.cli.verbs.keys import keys
from toolchain.cli.verbs.memory import memory
from toolchain.cli.verbs.publish import publish
from toolchain.cli.verbs.recipes import recipes
from toolchain.cli.verbs.run import run
from toolchain.cli.verbs.sign import sign
from toolchain.cli.verbs.train import train

_EXAMPLE = layout.example(
    "da3 recipes ls",
    "da3 export --domain cars --train",
    "da3 check dist/cars.da3b",
    "da3 run --domain cars photo.jpg",
)
_CODES = (
    "Exit codes: 0 done, 1 error, 2 usage, 3 parity failed, 4 verification failed, 6 a training "
    "made its domain worse."
)


@click.group(
    cls=BoundedGroup,
    epilog=f"{_EXAMPLE}\n\n{_CODES}",
    commands=[
        recipes,
        backbones,
        train,
        export,
        check,
        evaluate,
        build,
        run,
        device,
        bench,
        memory,
        inspect,
        keys,
        sign,
        publish,
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
