"""What the head's fit takes, by plain numbers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from toolchain.training.memory.head import ROOM, head_fit

FEATURES, CLASSES = st.integers(1, 5000), st.integers(2, 5000)


@given(features=FEATURES, classes=CLASSES, room=st.integers(0, 1 << 32))
def test_a_fit_keeps_within_its_room_or_is_the_smallest(
    features: int, classes: int, room: int
) -> None:
    fit, least = head_fit(features, classes, room), head_fit(features, classes)
    assert fit.bytes <= max(room, least.bytes)
    assert fit.rows >= least.rows
    assert fit.pairs >= least.pairs


def test_usual_heads_are_fitted_as_well_as_can_be() -> None:
    assert head_fit(64, 8, ROOM).pairs == head_fit(1280, 10, ROOM).pairs == 100
    assert head_fit(64, 8, ROOM).rows == 8192
