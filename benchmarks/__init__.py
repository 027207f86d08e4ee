"""Where the project's figures come from: one command, ``make bench``.

Rules of this room: it measures with the library's own code path and asserts nothing; figures are
written, never hoped for. ``timing`` measures, ``forms`` builds what is measured, ``joins`` the forms
that lost, ``second`` and ``samples`` the other figures; ``export`` runs them all, ``plot`` and
``results`` show them. Nothing here is imported by the library.
"""
