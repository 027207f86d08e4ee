"""A parity report as a table and as JSON; shared by ``export`` and ``check``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from toolchain.cli.show import layout

if TYPE_CHECKING:
    from toolchain.export.check.parity import ParityReport

_HEADS = ("flavour", "batch", "cases", "max error", "of range", "top-1", "gates", "")


def parity_lines(report: ParityReport) -> list[str]:
    """Return the table, one row per flavour and batch size."""
    rows = [
        (
            row.flavour,
            row.batch,
            row.cases,
            f"{row.max_absolute:.2e}",
            f"{row.max_relative:.1e}",
            row.top1_mismatches,
            row.gate_mismatches,
            "ok" if row.passed else f"FAILED {row.first}",
        )
        for row in report.comparisons
    ]
    forced = f", {report.forced} of them with forced gates" if report.forced else ""
    return [
        f"  {click.style('parity', bold=True)} with PyTorch: {report.cases} cases{forced}, "
        f"tolerance {report.tolerance:g} of the logits' range",
        *layout.table(_HEADS, rows, right="123456"),
        *(f"  {layout.clean(note)}" for note in report.notes),
    ]


def parity_document(report: ParityReport) -> dict[str, Any]:
    """Return the report for JSON."""
    return {
        "passed": report.passed,
        "tolerance": report.tolerance,
        "cases": report.cases,
        "forced": report.forced,
        "comparisons": report.comparisons,
        "notes": report.notes,
    }
