"""Fixtures of the tests of benchmarks."""

from tests.support.real_parser import graph, rtx

__all__ = ["graph", "rtx"]
