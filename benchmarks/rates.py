"""``python -m benchmarks.rates``: the learning rate that each method's own tensors want.

Rules of this file: it sees training pictures only. It holds some of them out to choose by, and uses
a seed that no table uses. It writes nothing: somebody copies what it shows into ``lr_factor`` of
``training.adapt.methods``, which scales the recipe's rate.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from statistics import fmean
from unittest.mock import patch

import click

from benchmarks.accuracy import changed, train_one, workers
from toolchain.recipe import find, load
from toolchain.training import data
from toolchain.training.adapt import methods
from toolchain.training.data import DomainData
from toolchain.training.data.splits import ArraySplit, Split, spread

OWNERS = tuple(name for name in methods.REGISTRY if name not in methods.SLOTS_ALONE)
"""The methods that have tensors of their own."""
DOMAINS = ("chirps", "digits")
PICTURES = 2000
HELD_OUT = 5
"""One picture in so many is not trained on."""
BATCH = 64
SEED = 100

Try = tuple[str, float, str]


def held_out(split: Split, limit: int) -> DomainData:
    """Return at most ``limit`` training pictures as two splits, even over classes."""
    rows = spread(split.labels, limit, SEED)
    pictures, labels = split.batch(rows)
    test = spread(labels, len(labels) // HELD_OUT, SEED)
    train = sorted({*range(len(labels))} - {*test.tolist()})
    classes = tuple(str(label) for label in sorted(set(labels.tolist())))
    return DomainData(
        ArraySplit(split.name, pictures[train], labels[train]),
        ArraySplit(f"{split.name}, held out", pictures[test], labels[test]),
        classes,
    )


def tried(job: Try) -> float:
    """Return the accuracy on held-out pictures, 0..1, with the method's factor replaced.

    A method without tensors of its own learns at the recipe's rate, which is scaled in its place.
    """
    method, factor, domain = job
    recipe = changed(load(find(domain)), method, SEED)
    pictures = held_out(data.load(recipe).train, PICTURES)
    train = dataclasses.replace(recipe.train, batch=BATCH)
    registry, replaced = methods.REGISTRY, {}
    if method in methods.SLOTS_ALONE:
        train = dataclasses.replace(train, lr=factor * train.lr)
    else:
        replaced[method] = dataclasses.replace(registry[method], lr_factor=factor)
    recipe = dataclasses.replace(recipe, train=train)
    with patch.dict(registry, replaced):
        return float(train_one(recipe, pictures)["accuracy"])


def jobs(names: Iterable[str], factors: Sequence[float]) -> Iterator[Try]:
    """Yield what is tried: every factor on every domain, method by method."""
    return product(names, factors, DOMAINS)


@click.command()
@click.option("--methods", "names", default=",".join(OWNERS), show_default=True)
@click.option("--factors", default="0.1,0.3,1,3,10", show_default=True)
@click.option("--processes", type=click.IntRange(1), default=2, show_default=True)
def main(names: str, factors: str, processes: int) -> None:
    """Print, per method and factor, the accuracy on pictures held out of training."""
    planned = list(jobs(names.split(","), [float(text) for text in factors.split(",")]))
    with workers(processes) as pool:
        accuracies = pool.map(tried, planned)
        for method, factor, _ in planned[:: len(DOMAINS)]:
            # map() keeps the order of the plan: the domains of one factor stand together.
            reached = {domain: next(accuracies) for domain in DOMAINS}
            each = "  ".join(f"{domain} {accuracy:.1%}" for domain, accuracy in reached.items())
            mark = " (in use)" if methods.REGISTRY[method].lr_factor == factor else ""
            print(f"{method} {factor}: {fmean(reached.values()):.1%}  {each}{mark}", flush=True)


if __name__ == "__main__":
    main()
