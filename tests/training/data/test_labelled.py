"""Labels become classes, and a share of each the test: laws that tables and arrays share."""

from __future__ import annotations

import dataclasses
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.tables import spec
from toolchain.training.data.labelled import classes_of, ordered, rows_to_test

DATA = spec("idx", files=("a", "b"))


@settings(max_examples=50, deadline=None)
@given(
    labels=st.lists(st.sampled_from("abcd"), min_size=1, max_size=60),
    share=st.floats(0.05, 0.9),
    seed=st.integers(0, 99),
)
def test_law_the_share_is_that_of_each_class_and_follows_names(
    labels: list[str], share: float, seed: int
) -> None:
    """Law: each class has its share, rounded, one at least on both sides; order means nothing."""
    one = dataclasses.replace(DATA, test_share=share, seed=seed)
    names = [str(row) for row in range(len(labels))]
    rows = rows_to_test(one, labels, names)
    counts, chosen = Counter(labels), Counter(labels[row] for row in rows)
    for label, count in counts.items():
        rounded = min(max(1, round(share * count)), count - 1)
        assert chosen[label] == (rounded if count > 1 else 0)
    turned = rows_to_test(one, labels[::-1], names[::-1])
    assert {names[row] for row in rows} == {names[::-1][row] for row in turned}


def test_what_is_added_to_one_class_moves_nothing_in_another() -> None:
    names = [str(row) for row in range(60)]
    before = rows_to_test(DATA, ["ab"[row % 2] for row in range(40)], names[:40])
    after = rows_to_test(DATA, ["ab"[row % 2 if row < 40 else 0] for row in range(60)], names)
    assert {row for row in before if row % 2} == {row for row in after if row < 40 and row % 2}


def test_labels_are_ordered_as_numbers_where_all_are() -> None:
    assert ordered({"10", "9", "1e1", "-1.5"}) == ("-1.5", "9", "10", "1e1")
    assert ordered({"10", "9", "b"}) == ("10", "9", "b")
    assert ordered({"nan", "10", "9"}) == ("10", "9", "nan")


def test_several_labels_can_be_one_class() -> None:
    one = dataclasses.replace(DATA, labels=("0", "1", "2"), classes=("fine", "bad", "bad"))
    classes = classes_of(one, {"0", "2"}, "here")
    assert classes.names == ("fine", "bad")
    assert classes.index_of == {"0": 0, "1": 1, "2": 1}
