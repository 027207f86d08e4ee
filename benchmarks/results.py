"""Figures as text: docs/results.md and the lines at the end of a run.

Rules of this file: the JSON document in, Markdown out. Every number in the text comes from the
document; nobody types one. A section replaces its own kind in the file and touches no other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from toolchain.bench.footprint import AGREEMENT
from toolchain.bench.latency import STATES
from toolchain.bench.tables import Document, tables
from toolchain.core.files import write_atomic

_FIGURES = {
    "open_ratio": "all gates open, against the plain backbone",
    "half_ratio": "every second gateable block closed",
    "closed_ratio": "all gates closed",
    "second_domain_s": "second domain on the same backbone, seconds",
    "bundle_ratio": "bundle's bytes against the backbone's",
}
SAMPLES = "# Sample domains on resnet20"
ENGINES = "# TensorRT engines"
ACCURACY = "# Accuracy of the methods"
NATURAL = "# Real pictures on ImageNet weights"
ABLATIONS = "# What each part of da3 is worth"
ABLATED = ("accuracy", "executed_share", "decide")
MEMORY = "# What training keeps"
RANGES = "# Ranges of int8"
DEVICE = "# Updates of a device"
STALL = "# Heavy requests to a server"
_JUDGED = {
    "da3_minus_head": "points of `da3` above its own head, mean",
    "da3_minus_head_least": "the same on the set where it is least",
    "da3_minus_finetune": "points of `da3` above fine-tuning, mean",
    "da3_minus_static": "points of `da3` above `static`, mean",
    "da3_minus_random": "points of `da3` above `random`, mean",
    "dynamic_gates_share": "share of its gates that decide, mean",
    "executed_share": "share of the backbone that it executes, mean",
}
KEPT_TARGETS = {"da3": 37, "da3-fp32": 12}
"""Of what fine-tuning keeps, a method's row may keep one in so many bytes."""


def summary(document: Document) -> str:
    """Return the figures with their targets, one per line, for a terminal."""
    lines = [
        f"{_verdict(document[key], target)} {key:16s} {document[key]:7.3f} (at most {target})"
        for key, target in document["targets"].items()
    ]
    for domain, got in document["samples"].items():
        lines.append(f"     {domain:16s} {_sample(got)}")
    return "\n".join(lines)


def _verdict(value: float, target: float) -> str:
    return "ok  " if value <= target else "OVER"


def text(
    document: Document,
    runtime: Document | None = None,
    engine: Document | None = None,
    *,
    reached: Document | None = None,
    trainings: Document | None = None,
) -> str:
    """Return docs/results.md from the documents of the export side, `da3 bench` and engines.

    ``reached``: that of ``benchmarks.accuracy``; ``trainings``: that of ``benchmarks.memory``.
    """
    return "\n".join(
        [
            "# Results",
            "",
            "Measured, not promised: `make bench` writes this file, `build/bench/export.json` with "
            "a plot, and `build/bench/runtime.json` with a page (`python -m benchmarks.export "
            "--redraw` writes this file and the plot again).",
            "",
            *_conditions(document),
            "",
            "## Figures and targets",
            "",
            *_table(
                ("figure", "what", "measured", "target"),
                (
                    (f"`{key}`", _FIGURES[key], f"{document[key]:.3f}", f"at most {target}")
                    for key, target in document["targets"].items()
                ),
            ),
            "",
            *_speed(document),
            *_second(document["second"]),
            *samples(document["samples"]),
            "",
            *(_runtime(runtime) if runtime else []),
            *([*memory(trainings), ""] if trainings else []),
            *([*accuracy(reached), ""] if reached else []),
            *(["", *engines(engine)] if engine else []),
        ]
    )


def engines(document: Document) -> list[str]:
    """Return the section of engines from the document of ``benchmarks.engine``."""
    own, versions = document["machine"], document["versions"]
    shown = ", ".join(f"{name} {version}" for name, version in versions.items())
    against = document["refit"]
    return [
        ENGINES,
        "",
        "`make bench-gpu` (`python -m benchmarks.engine`), domains drawn, not trained, kits for "
        f"`{document['target']}`. Machine: {own['processor']}, {own['cores']} cores; versions: "
        f"{shown}. GPUs: {', '.join(gpu['name'] for gpu in document['gpus']) or 'none'}.",
        "",
        *_table(
            (
                *("backbone", "precision", "flavour", "models", "conditionals", "boundaries"),
                *("ONNX MB", "plan MB", "build s"),
            ),
            (
                (
                    *(str(row[key]) for key in ("backbone", "precision", "flavour", "models")),
                    *(str(row[key]) for key in ("conditionals", "boundaries")),
                    *(f"{row[key] / 1e6:.1f}" for key in ("onnx_bytes", "plan_bytes")),
                    f"{row['build_s']:.1f}",
                )
                for row in document["builds"]
            ),
        ),
        "",
        f"Slots as weights that are refitted one by one, {against['backbone']}: TensorRT knows "
        f"{against['known']} of {against['slots']} by name"
        + (
            f", exchanging them takes {1e3 * against['refit_s']:.2f} ms."
            if "refit_s" in against
            else "; exchanging them was not run, as it needs a GPU."
        ),
        "",
        *_table(
            ("domain", "precision", "accuracy", "same class", "same gates", "largest error"),
            (
                (
                    f"`{row['domain']}`",
                    row["precision"],
                    *(f"{row[key]:.1%}" for key in ("accuracy", "agreement", "gate_agreement")),
                    f"{row['max_relative']:.2%}",
                )
                for row in document["accuracy"]
            ),
        ),
        "",
        "Accuracy is that of onnxruntime on up to 400 validation pictures of each trained sample, "
        "as it stands in the bundles; the largest error is that of a logit over the range of all, "
        "of pictures with another gate too.",
        "",
        *(_ran(document["ran"]) if document["ran"] else []),
        *(
            [f"`trtexec` on the plain backbone: {document['trtexec_plain_ms']:.3f} ms.", ""]
            if document["trtexec_plain_ms"]
            else []
        ),
        *(f"Not run: {what}." for what in document["not_run"]),
    ]


def _ran(rows: list[Any]) -> list[str]:
    return [
        *_table(
            (
                *("backbone", "precision", "flavour", "gates", "open ms", "closed ms"),
                *("latency ms", "swap ms", "parity", "plans"),
            ),
            ((*_ran_row(row),) for row in rows),
        ),
        "",
    ]


def _ran_row(row: Mapping[str, Any]) -> Iterable[str]:
    proof, first = row["skipping"], next(iter(row["domains"].values()))
    yield from (row["backbone"], row["precision"], row["flavour"])
    if proof is None:
        yield from ("", "", "")
    else:
        yield from (proof["verdict"], f"{proof['open_ms']:.3f}", f"{proof['closed_ms']:.3f}")
    yield f"{first['latency']['median_ms']:.3f}"
    yield f"{1e3 * first['swap_s']:.2f}"
    yield f"{max(one['error'] for one in row['parity'].values()):.1e}"
    yield "unchanged" if row["unchanged"] else "changed"


def device(document: Document) -> list[str]:
    """Return the section of what an update costs a device, from ``benchmarks.device``."""
    rows = {
        "update_s": ("from the start of a round until a runner answers by the new release, s", 3),
        "switch_ms": ("exchanging the links, ms", 4),
        "agent_rss_mb": ("memory of the agent between two rounds, MB", 1),
        "agent_cpu_share": ("its share of a core meanwhile", 5),
    }
    lines = [
        DEVICE,
        "",
        f"`python -m benchmarks.device`: a domain of ResNet-50 in a bundle of "
        f"{document['bundle_bytes'] / 1e6:.1f} MB, all of it fetched anew over HTTP on loopback, "
        f"{document['rounds']} updates. Each round of the agent is a process of its own; its start "
        "and that of the self-test's process count. Medians, quartiles behind them.",
        "",
        "| | measured | at most |",
        "|---|---|---|",
    ]
    for name, (what, digits) in rows.items():
        spread = document.get(name.replace("_s", "_quartiles_s").replace("_ms", "_quartiles_ms"))
        ends = (
            f" ({spread[0]:.{digits}f} to {spread[1]:.{digits}f})"
            if isinstance(spread, list)
            else ""
        )
        value = f"{document[name]:.{digits}f}{ends}"
        lines.append(f"| {what} | {value} | {document['goals'][name]:g} |")
    return lines


def put(path: Path, section: list[str]) -> None:
    """Write ``section`` into the document ``path``, which is made where it is missing."""
    before = path.read_text() if path.is_file() else ""
    write_atomic(path, placed(before, section).encode(), overwrite=True)


def placed(whole: str, section: list[str]) -> str:
    """Return ``whole`` with ``section`` in place of the one with its heading, or before engines.

    A section starts with a heading of the first level and ends before the next one.
    """
    heading, *_ = section
    parts = re.split(r"^(?=# )", whole, flags=re.MULTILINE)
    new = "\n".join(section).rstrip("\n") + "\n\n"
    if not any(part.startswith(f"{heading}\n") for part in parts):
        last = next((i for i, p in enumerate(parts) if p.startswith(ENGINES)), len(parts))
        # What was last ends without an empty line.
        before = "".join(parts[:last]).rstrip("\n")
        parts = [f"{before}\n\n" if before else "", new, *parts[last:]]
    else:
        parts = [new if part.startswith(f"{heading}\n") else part for part in parts]
    return "".join(parts).rstrip("\n") + "\n"


def accuracy(document: Document) -> list[str]:
    """Return the section of accuracies from the document of ``benchmarks.accuracy``."""
    what = "`python -m benchmarks.accuracy`, resnet20, 32 px, the recipes of the sample domains but"
    return [ACCURACY, "", _setup(document, what), "", *_accuracies(document)]


def natural(document: Document) -> list[str]:
    """Return the section of real pictures from the document of ``benchmarks.natural``."""
    what = (
        f"`make natural`, {document['backbone']} with its ImageNet weights, {document['side']} px, "
        "the recipes that `da3 recipes new` writes but"
    )
    sentences = (
        f"* {text}: {_signed(value) if key.startswith('da3_minus') else f'{value:.2f}'}"
        for key, text in _JUDGED.items()
        if (value := document["summary"][key]) is not None
    )
    about = [
        "Sets, 2,000 pictures to train at most: `cells4` and `cells2` are photographs of solar "
        "cells (elpv-dataset) by defect and kind, or by defect; `fashion` is Fashion-MNIST; "
        "`glyphs` are letters of fonts, whose families are either trained or tested; "
        "`digits` are handwritten, and no writer is in both parts.",
        "",
        "`static` and `random` are no methods: they train as `da3`, with blocks closed for every",
        "picture down to the recipe's budget. `static` closes what validation misses least.",
    ]
    return [
        NATURAL,
        "",
        _setup(document, what),
        "",
        *sentences,
        "",
        *_accuracies(document),
        *about,
    ]


def ablations(rows: Mapping[str, Mapping[str, Mapping[str, float]]], seeds: int) -> list[str]:
    """Return the section of ``benchmarks.ablations``: means over seeds by part and set."""
    sets = list(next(iter(rows.values())))
    table = _table(
        ("`da3`", *(f"{name}: accuracy, share, deciding" for name in sets)),
        ((part, *(_ablated(by_set[name]) for name in sets)) for part, by_set in rows.items()),
    )
    return [
        ABLATIONS,
        "",
        "`python -m benchmarks.ablations`: the recipes of the section above with one part taken "
        f"away, {seeds} seed(s), on training pictures that were held out (500 of 2,500). Accuracy "
        "in per cent. With one seed, a difference below one and a half points says nothing.",
        "",
        *table,
    ]


def _ablated(figures: Mapping[str, float]) -> str:
    accuracy, share, deciding = (figures[key] for key in ABLATED)
    return f"{100 * accuracy:.1f}, {share:.2f}, {deciding:.2f}"


def _signed(value: float) -> str:
    return f"{value:+.2f}"


def _setup(document: Document, what: str) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in document["versions"].items())
    older = document["older_code"]
    return (
        f"{what} for method and seed: {document['finished']} of {document['planned']} runs"
        + (f", {older} of them from earlier code" if older else "")
        + f". One thread per run; machine: {'; '.join(document['machines'])}; "
        f"versions: {versions}."
    )


def _accuracies(document: Document) -> list[str]:
    columns = (
        *("average", "balanced", "against `finetune`", "share", "deciding"),
        *("trained", "kept MiB", "peak MiB", "s"),
    )
    return [
        *_table(
            ("method", *document["domains"], *columns),
            (_reached(row) for row in document["rows"]),
        ),
        "",
        f"Test accuracy in per cent, mean over up to {document['seeds']} seeds, in brackets the "
        "highest less the lowest; `balanced` is the mean over classes. `against finetune` in "
        "points, over the pairs of domain and seed that both have; `share` of the backbone's "
        "multiply-adds that open gates execute; "
        "`deciding`: the part of the gates that are open for 5 to 95 % of the test pictures; "
        "`trained` parameters, head included; `kept MiB` for the backward pass of a step and `peak "
        "MiB` beside the weights, by rule, every gate open; `s` per run, testing and searches "
        "included.",
        "",
        *(f"Failed: {name}: {error}" for name, error in document["failed"].items()),
    ]


def _reached(row: Document) -> tuple[str, ...]:
    cells = (
        f"{100 * got['mean']:.1f} ({100 * got['spread']:.1f})" if got else ""
        for got in row["domains"].values()
    )
    against, share = row["against_finetune"], row["executed_share"]
    means = (row["average"], row["balanced"])
    return (
        f"`{row['method']}`",
        *cells,
        *("" if mean is None else f"{100 * mean:.1f}" for mean in means),
        "" if against is None else f"{against:+.1f}",
        "" if share is None else f"{share:.2f}",
        "" if row["decide"] is None else f"{row['decide']:.2f}",
        str(row["trained"]),
        *(f"{row[key] / 2**20:.1f}" for key in ("kept_bytes", "needed_bytes")),
        f"{row['seconds']:.0f}",
    )


def memory(document: Document) -> list[str]:
    """Return the section of training's memory from the document of ``benchmarks.memory``."""
    own, versions = document["conditions"]["machine"], document["conditions"]["versions"]
    shown = ", ".join(f"{name} {number}" for name, number in versions.items())
    lines = [
        MEMORY,
        "",
        f"`python -m benchmarks.memory`, a training step as `da3 memory` measures it; what each "
        f"column is says [docs/memory.md](memory.md). Machine: {own['processor']}, {own['cores']} "
        f"cores; versions: {shown}.",
        "",
        f"Kept: {document['conditions']['how_kept']}. Peak: {document['conditions']['how_peak']}.",
        "",
    ]
    lines += _targets(document)
    for name in document["conditions"]["runs"]:
        lines += _kept_on(document, name, "CPU")
    if "cuda" in document:
        there = document["cuda"]
        lines += [f"On a GPU ({there['gpu']}): {there['conditions']['how_peak']}.", ""]
        for name in there["conditions"]["runs"]:
            lines += _kept_on(there, name, there["gpu"])
    return lines


def _targets(document: Document) -> list[str]:
    """Return the targets of ResNet-50's training; no lines where it was not measured."""
    rows = document.get("resnet50", {})
    if not {"finetune", *KEPT_TARGETS} <= set(rows):
        return []
    whole, ours = rows["finetune"]["stored_measured"], rows["da3"]
    words = ("kept by `da3`, of fine-tuning's", "the same with nothing quantised")
    apart = max(abs(row["agreement"]) for row in rows.values())
    figures = [
        *(
            (what, f"1/{whole / rows[name]['stored_measured']:.1f}", f"1/{target}")
            for what, (name, target) in zip(words, KEPT_TARGETS.items(), strict=True)
        ),
        ("measured against the rules, any method", f"{apart:.1%}", f"{AGREEMENT:.1%}"),
    ]
    if "step_ratio" in ours:
        share = f"{ours['executed_share']:.2f} of the multiply-adds"
        figures += [
            (
                "step of `da3`, of fine-tuning's, all gates open",
                f"{ours['step_ratio']:.2f}",
                "0.80",
            ),
            (f"the same at {share}", f"{ours['step_ratio_budget']:.2f}", "0.50"),
        ]
    heads = ("ResNet-50", "reached", "at most")
    return [*_table(heads, figures), ""]


def _kept_on(document: Document, name: str, where: str) -> list[str]:
    """Return one backbone's heading, table and remarks."""
    rows, run = document[name], document["conditions"]["runs"][name]
    whole = next(iter(rows.values()))["stored_measured"]
    share = f"{100 * run['budget']:.0f} %"
    explained = (
        f"{method}, by rule {row['agreement']:+.1%}: {row['explanation']}."
        for method, row in rows.items()
        if row["explanation"]
    )
    return [
        f"## {name}, {run['input']} px, batch {run['batch']}, {where}, {run['threads']} "
        f"thread{'s' * (run['threads'] > 1)}",
        "",
        *_table(
            (
                *("method", "trained", "kept MB", "1 of", "by rule", "stock MB", "peak MB"),
                *("optimiser MB", "domain MB", "step", f"step at {share}"),
            ),
            ((*_kept_row(method, row, whole),) for method, row in rows.items()),
        ),
        "",
        *explained,
        "",
    ]


def _kept_row(method: str, row: Document, whole: int) -> Iterable[str]:
    yield f"`{method}`"
    yield str(row["trainable"])
    yield f"{row['stored_measured'] / 1e6:.2f}"
    yield f"{whole / row['stored_measured']:.1f}"
    yield f"{row['agreement']:+.1%}"
    for key in ("stored_stock", "peak", "optimiser", "domain_bytes"):
        yield f"{row[key] / 1e6:.2f}"
    for key in ("step_ratio", "step_ratio_budget"):
        yield f"{row[key]:.2f}" if key in row else ""


def _runtime(document: Document) -> list[str]:
    """Return what `da3 bench` measured: its figures, then its tables."""
    own, settings = document["machine"], document["settings"]
    lines = [
        "# Swapping domains at run time",
        "",
        f"`da3 bench --backbone {settings['backbone']} --input {settings['side']} --domains "
        f"{settings['domains']} --threads {settings['threads']}`, domains drawn, not trained; "
        f"load average {own['load']} before and {own['load_after']} after; what each row is says "
        "[docs/benchmarks.md](benchmarks.md).",
        "",
    ]
    for table in tables(document):
        if table.key == "figures":
            rows = ((f"`{name}`", what, value, goal) for name, value, goal, _, what in table.rows)
            lines += _table(("figure", "what", "measured", "target"), rows)
        else:
            lines += [f"## {table.title}", "", table.note, "", *_table(table.heads, table.rows)]
        lines.append("")
    return lines


def _conditions(document: Document) -> list[str]:
    own, versions = document["machine"], document["versions"]
    packages = ", ".join(f"{name} {number}" for name, number in versions.items())
    return [
        f"Machine: {own['processor']} ({own['vector']}), {own['cores']} cores, {own['system']}; "
        f"load average {own['load']} before and {own['load_after']} after. Versions: {packages}.",
        "",
        f"Speed: onnxruntime's CPU provider with one thread; contenders interleaved, clock "
        f"`{document['clock']}`; a ratio is the median over rounds of the time against the plain "
        "frozen backbone in the same round (same split, head only, BatchNorm folded, all "
        "optimisations on), its quartiles in brackets. ResNet-50 untrained, 224 px, 196 classes, "
        "adaptors with the default options; gates set through their bias slots.",
    ]


def _speed(document: Document) -> list[str]:
    lines = []
    for name, title in (("resnet50", "ResNet-50, 224 px"), ("resnet20", "resnet20, 32 px")):
        one, many, floors = (document[name][key] for key in ("one", "many", "floors"))
        floor = ("share of multiply-adds that run", *(f"{floors[s]:.2f}" for s in STATES))
        lines += [
            f"## {title}, batch 1",
            "",
            f"Plain backbone: {one['plain']['median_ms']:.2f} ms; timed again as a contender: "
            f"{_ratio(one['plain again'])}. `naive` is a straight export with full-size adaptors "
            "(3x3, 8 groups) on every block, which skips nothing.",
            "",
            *_table(("form", *STATES), [*_rows(one, ("if", "rows", "static", "naive")), floor]),
            "",
            f"## {title}, batch 16",
            "",
            f"Plain backbone, 16 at once: {many['plain']['median_ms']:.1f} ms; 16 runs of its "
            f"batch-1 form: {_ratio(many['plain loop'])}.",
            "",
            *_table(("form", *STATES), _rows(many, ("rows", "if loop"))),
            "",
        ]
    lost = document["resnet50"]["lost"]
    return [
        *lines,
        "## Forms that lost",
        "",
        "ResNet-50, 224 px, batch 1, one run; what they are and why they lost: "
        "[decision 0003](decisions/0003-forms.md).",
        "",
        *_table(("form", *STATES), _rows(lost, _forms(lost))),
        "",
    ]


def _forms(group: Document) -> list[str]:
    names = [name.rpartition(" ")[0] for name in group if name.split()[-1] in STATES]
    return list(dict.fromkeys(names))


def _rows(group: Document, forms: Iterable[str]) -> list[tuple[str, ...]]:
    return [
        (f"`{form}`", *(_ratio(group.get(f"{form} {state}")) for state in STATES)) for form in forms
    ]


def _second(own: Document) -> list[str]:
    steps = ", ".join(f"{name} {value:.1f}" for name, value in own["seconds"].items())
    return [
        "## A second domain",
        "",
        f"Export of a second 196-class domain on a ResNet-50 whose first domain is there, the "
        f"middle one of {len(own['runs_s'])} runs: "
        f"{own['second_domain_s']:.1f} s of wall-clock time ({own['export_cpu_s']:.1f} s of "
        f"processor time; {steps}), after "
        f"{own['import_s']:.1f} s of imports. The first took {own['first_domain_s']:.1f} s. "
        f"The bundle has {own['bundle_bytes']} bytes, "
        f"the backbone artefact {own['backbone_bytes']}, which was "
        f"{'reused' if own['backbone_reused'] else 'written again'}.",
        "",
    ]


def samples(document: Document) -> list[str]:
    """Return the section of the sample domains from what ``benchmarks.samples`` read."""
    rows = [
        (f"`{domain}`", *_percents(got)) if got else (f"`{domain}`", "not trained", "", "")
        for domain, got in document.items()
    ]
    return [
        SAMPLES,
        "",
        "`python -m benchmarks.samples`, the checkpoints of `make samples`. Test accuracy with "
        "adaptors and gates, of the head alone, and the share of the backbone's multiply-adds that "
        "open gates execute (adaptors not counted).",
        "",
        *_table(("domain", "accuracy", "head only", "executed share"), rows),
    ]


def ranges(document: Document) -> list[str]:
    """Return the section of int8's thresholds from the document of ``benchmarks.ranges``."""
    cells = ("class", "gates", "error")
    rows = [
        (
            row["what"],
            f"`{row['domain']}`",
            str(row["cases"]),
            *(f"{100 * row[cell]:.1f}" for cell in cells),
        )
        for row in document["rows"]
    ]
    return [
        RANGES,
        "",
        "`python -m benchmarks.ranges`, the checkpoints of `make samples`. The ranges come from up "
        f"to {document['calibration']} pictures that trained the domain, the figures from pictures "
        "of its validation part; no test picture takes part. In per cent of the pictures: another "
        "class, and another gate, than in float32. `error`: the largest error of a logit where all "
        "gates agree, in per cent of the logits' range. `own` ranges are those of the domain; "
        "`joined` ones hold for all the domains at once, as a kit does.",
        "",
        *_table(("ranges", "domain", "pictures", "class", "gates", "error"), rows),
    ]


def stall(document: Document) -> list[str]:
    """Return the section of what others wait for from the document of ``benchmarks.stall``."""
    own, setup = document["machine"], document["setup"]
    bound = document["bound_ms"]

    def cells(got: Document) -> Iterable[str]:
        low, high = got["quartiles_ms"]
        yield f"{got['median_ms']:.1f} ({low:.1f} to {high:.1f})"
        yield f"{got['p95_ms']:.1f}"
        yield f"{got['largest_ms']:.1f}"

    rows = [
        (
            kind,
            str(row["sent"]),
            *cells(row["health"]),
            f"{row['health']['late']} of {row['health']['count']}",
            f"{row['stalled_ms']:.0f}",
            *cells(row["answers"]),
            str(row["failed"]),
        )
        for kind, row in document["rows"].items()
    ]
    return [
        STALL,
        "",
        f"`python -m benchmarks.stall`, a drawn domain on resnet20, 32 px: {setup['clients']} "
        f"clients send what the first column names without a pause, {setup['rounds']} times for "
        f"{setup['seconds']:g} s, in turns. Meanwhile one client asks for health and one for an "
        f"answer to a picture, on connections that stay. Times in ms: the median (quartiles of the "
        f"rounds' medians), the 95th percentile, the largest. Health is to be answered within "
        f"{bound:g} ms; `late` counts what took longer. `stall` is the most processor time between "
        f"two turns of a thread while {setup['clients']} others parse the body, which no other "
        f"program adds to. Machine: {own['processor']}, "
        f"{own['cores']} cores, shared by clients and server; load average {own['load']} before "
        f"and {own['load_after']} after.",
        "",
        *_table(
            (
                *("load", "sent", "health", "95 %", "largest", "late", "stall"),
                *("answer", "95 %", "largest", "failed"),
            ),
            rows,
        ),
    ]


def _percents(got: Document) -> tuple[str, ...]:
    head = got["head_accuracy"]
    return (
        f"{100 * got['accuracy']:.1f} %",
        "-" if head is None else f"{100 * head:.1f} %",
        f"{got['executed_share']:.2f}",
    )


def _sample(got: Document | None) -> str:
    if got is None:
        return "not trained"
    accuracy, head, share = _percents(got)
    return f"accuracy {accuracy}, head only {head}, executed share {share}"


def _ratio(timing: Document | None) -> str:
    if timing is None:
        return ""
    low, high = timing["ratio_quartiles"]
    return f"{timing['ratio']:.3f} ({low:.3f} to {high:.3f})"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    head = list(head)
    return [_line(head), _line("-" * 3 for _ in head), *(_line(row) for row in rows)]


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
