"""The script that trained the shipped weights, at toy size, and what it claims of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from da3_models import resnet20
from da3_models.pictures import IGNORED, TASKS
from da3_models.pretrain import accuracies, batches, columns, loss_of, train

from toolchain.training.adapt.weights import load_backbone


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Train as the script does by default."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trained(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    model = resnet20.build(sum(TASKS.values()))
    train(model, seed=seed, pictures=128, peak_lr=0.1, report_s=1e9)
    return model.state_dict()


def test_one_seed_one_file() -> None:
    """Law: on one machine the weights are a function of the seed."""
    one, two, other = trained(3), trained(3), trained(4)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["conv1.weight"], other["conv1.weight"])


def test_inputs_are_normalised_and_columns_belong_to_their_tasks() -> None:
    (images, labels), _ = batches(seed=0, pictures=256)
    assert images.shape == (128, 3, 32, 32)
    assert images.min() >= -1
    assert images.max() <= 1
    assert labels.shape == (128, len(TASKS))
    assert [c.shape[1] for c in columns(torch.zeros(2, 64))] == list(TASKS.values())


def test_loss_ignores_fills_that_cannot_be_seen() -> None:
    labels = torch.tensor([[0, 1, 2], [40, IGNORED, 3]])
    logits = torch.randn(2, 64)
    changed = logits.clone()
    changed[1, 48:56] += torch.randn(8)
    torch.testing.assert_close(loss_of(logits, labels), loss_of(changed, labels))
    changed[0, 48:56] += torch.randn(8)
    assert not torch.isclose(loss_of(logits, labels), loss_of(changed, labels))


def test_shipped_weights_know_pictures_that_nobody_drew_before() -> None:
    scores = accuracies(load_backbone("resnet20"), seed=77, pictures=768)
    assert scores["figure"] > 0.7
