"""Where the project's figures come from: one command, ``make bench``.

Rules of this room: it measures with the library's own code path and asserts nothing. ``forms``
builds what is measured, ``joins`` the forms that lost. ``speed`` times them with
:mod:`toolchain.core.timing`. ``second`` and ``samples`` give the other figures. ``export`` runs
them all; ``plot`` and ``results`` show them. The library imports nothing of this room.
"""
