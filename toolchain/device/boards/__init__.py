"""Boards: what a board is and can do.

Rules of this room: facts with their sources, from tables or from the machine at hand. The CUDA
driver opens only when a function asks for it. Nothing is built here. A new board with a known
TensorRT is one row of ``target.py``; a new TensorRT is a row of ``parsers.py`` and a release in
``target.py``.
"""
