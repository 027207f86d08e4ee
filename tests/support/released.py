"""``python -m tests.support.released FOLDER``: bundles and a backbone as today's code writes them.

What lies in ``tests/bundles/N`` from 2 on was made so while ``da3.bundle/N`` was the newest schema.
It is never made anew: later versions have to open it, and to run it.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.support import exported
from toolchain.device.boards.target import find
from toolchain.export.emit.models import KitOrder
from toolchain.export.pipeline import export
from toolchain.recipe import AdaptorOptions

DOMAINS: dict[str, dict[str, Any]] = {
    "sample": {"changes": {"golden": "drawn"}},
    # Running statistics and norms of its own: a bundle with a patch.
    "patched": {"method": "bn", "seed": 17, "changes": {"adaptor": AdaptorOptions()}},
}
# What fp16 costs stands in the bundle; the kit is not kept.
ORDERS = {"sample": (KitOrder(find("orin-nano-jp6.2"), "fp16", ("swap",)),)}


def make(folder: Path) -> None:
    """Write ``<name>.da3b`` of each of :data:`DOMAINS`, and their backbone, into ``folder``."""
    folder.mkdir()
    with tempfile.TemporaryDirectory() as scratch:
        exported.register(Path(scratch) / "site")
        for name, options in DOMAINS.items():
            own = Path(scratch) / name
            own.mkdir()
            domain = exported.make_domain(own, name=name, **options)
            orders = ORDERS.get(name, ())
            export(domain.recipe, checkpoint=domain.checkpoint, dist=folder, orders=orders)
    for kit in folder.glob("kit-*"):
        shutil.rmtree(kit)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
