"""Fixtures of the tests of engines."""

from tests.support.real_parser import graph, rtx

__all__ = ["graph", "rtx"]
