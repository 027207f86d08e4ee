"""``python -m toolchain`` is ``da3``."""

from toolchain.cli import main

main()
