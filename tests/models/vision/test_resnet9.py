"""ResNet9: shapes of its choices, skip layers that begin as nothing, and that it learns."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.data import images
from hasten.errors import HastenError
from hasten.models.vision.resnet9 import ResNet9
from hasten.train.classifying import accuracy, classify


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 8), st.integers(1, 3),
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 2)), min_size=1, max_size=3),
    st.integers(1, 20), st.integers(1, 20),
)  # fmt: skip
def test_any_choice_takes_any_picture(stem, channels, blocks, height, width):
    filters, skips = zip(*blocks, strict=True)
    network = ResNet9(5, channels, stem, filters, skips).eval()
    assert network(torch.randn(2, channels, height, width)).shape == (2, 5)
    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) == 1 + len(blocks) + 2 * sum(skips)


def test_skip_layers_begin_as_nothing():
    torch.manual_seed(0)
    deep = ResNet9(10, 1, 4, (6, 8), (2, 1))
    shallow = ResNet9(10, 1, 4, (6, 8), (0, 0))
    shallow.load_state_dict({k: v for k, v in deep.state_dict().items() if "skips" not in k})
    x = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(deep(x), shallow(x))
    deep(x).sum().backward()
    # They can grow all the same.
    assert deep.skips[0][0][1][1].weight.grad.abs().sum() > 0


def test_wrong_choices_are_told():
    for stem, filters, skips in ((4, (8,), (1, 1)), (4, (), ()), (0, (8,), (1,)), (4, (0,), (1,)), (4, (8,), (-1,))):
        with pytest.raises(HastenError, match="filters from 1 and skips from 0"):
            ResNet9(10, 1, stem, filters, skips)


def test_it_learns_digits():
    pictures, labels = images.digits()
    pictures = (pictures[:, None].float() - pictures.float().mean()) / pictures.float().std()
    torch.manual_seed(0)
    network = ResNet9(10, 1, 8, (16,), (1,))
    classify(network, pictures[:600], labels[:600], epochs=2, batch=32, rate=0.05, seed=0)
    assert accuracy(network, pictures[600:1200], labels[600:1200]) > 0.7
