"""The document as one page: tables and plots, readable in light and dark, on a screen and printed.

Rules of this file: it writes one file of HTML that asks for nothing else: no script, no font, no
picture from elsewhere. Text of the document is escaped. It computes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from importlib.util import find_spec

from toolchain.bench.plots import Plot, plots
from toolchain.bench.tables import Document, Table, tables
from toolchain.core.errors import MissingPackageError

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --page: #ffffff; --line: #d4d9e0; --dim: #5b6675;
  --good: #1f7a43; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --page: #14181e; --line: #353c47;
  --dim: #9aa5b4; --good: #6fcf97; --bad: #ff8a80; } }
body { color: var(--ink); background: var(--page); font: 16px/1.5 system-ui, sans-serif;
  max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0.2rem; } h2 { font-size: 1.2rem; margin: 2.2rem 0 0.3rem; }
p { margin: 0.2rem 0 0.8rem; } .dim, figcaption { color: var(--dim); font-size: 0.9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
th, td { padding: 0.25rem 0.9rem 0.25rem 0; border-bottom: 1px solid var(--line);
  text-align: right; white-space: nowrap; }
th { font-weight: 600; } th:first-child, td:first-child, .text td, .text th { text-align: left; }
td.met { color: var(--good); font-weight: 600; } td.missed { color: var(--bad); font-weight: 600; }
.text td:last-child { white-space: normal; min-width: 16rem; }
figure { margin: 1rem 0; } figure svg { width: 100%; height: auto; max-width: 46rem; }
@media print { body { max-width: none; margin: 0; } h2, figure, table { break-inside: avoid; }
  :root { --ink: #000000; --page: #ffffff; --line: #bbbbbb; --dim: #444444; --good: #1f7a43;
    --bad: #b3261e; } }
"""


def require_plots() -> None:
    """Raise MissingPackageError before anything is measured if the page could not be drawn."""
    if find_spec("matplotlib") is None:
        raise MissingPackageError("matplotlib", "the page", "bench")


def page(document: Document) -> str:
    """Return the page. Raises MissingPackageError as :func:`require_plots`."""
    require_plots()
    drawn = plots(document)
    body = [*_head(document)]
    for table in tables(document):
        body += [*_table(table), *(_figure(plot) for plot in drawn if plot.key == table.key)]
    body += [*_absent(document["not_measured"]), *_conditions(document)]
    title = escape(_title(document))
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
            *body,
            "</body>\n</html>\n",
        ]
    )


def _title(document: Document) -> str:
    settings = document["settings"]
    return f"DA3 runtime on {settings['backbone']}, {settings['side']} px"


def _head(document: Document) -> Iterator[str]:
    settings, machine = document["settings"], document["machine"]
    drawn = "drawn, untrained values" if settings["drawn"] else "bundles that were given"
    yield f"<h1>{escape(_title(document))}</h1>"
    yield (
        f'<p class="dim">{settings["domains"]} domains ({drawn}), {settings["threads"]} '
        f"thread(s) of an operator, {escape(str(machine['processor']))}, "
        f"{machine['cores']} cores, onnxruntime {escape(document['versions']['onnxruntime'])}</p>"
    )


def _table(table: Table) -> Iterator[str]:
    kind = ' class="text"' if table.text else ""
    yield f"<h2>{escape(table.title)}</h2>\n<p class='dim'>{escape(table.note)}</p>"
    yield f'<div class="scroll"><table{kind}>\n<thead><tr>'
    yield "".join(f'<th scope="col">{escape(head)}</th>' for head in table.heads)
    yield "</tr></thead>\n<tbody>"
    for row in table.rows:
        yield f"<tr>{''.join(map(_cell, row))}</tr>"
    yield "</tbody>\n</table></div>"


def _cell(text: str) -> str:
    kind = f' class="{text}"' if text in ("met", "missed") else ""
    return f"<td{kind}>{escape(text)}</td>"


def _figure(plot: Plot) -> str:
    caption = escape(plot.caption)
    svg = plot.svg.replace("<svg", f'<svg role="img" aria-label="{caption}"', 1)
    return f"<figure>\n{svg}\n<figcaption>{caption}</figcaption>\n</figure>"


def _absent(missing: Mapping[str, str]) -> Iterator[str]:
    if missing:
        yield "<h2>Not measured</h2>\n<ul>"
        yield from (f"<li>{escape(what)}: {escape(why)}</li>" for what, why in missing.items())
        yield "</ul>"


def _conditions(document: Document) -> Iterator[str]:
    machine = document["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in document["versions"].items())
    took = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in document["took_s"].items())
    yield "<h2>Taken on</h2>"
    yield (
        f"<p>{escape(str(machine['processor']))} ({escape(machine['vector'])}), "
        f"{machine['cores']} cores, {escape(machine['system'])}; load average {machine['load']} "
        f"before and {machine['load_after']} after. {escape(versions)}. Took: {escape(took)}.</p>"
    )
