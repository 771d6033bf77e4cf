"""Growing: what a network computes stays, through normalization, flattening and concatenation, and comes back."""

from __future__ import annotations

import copy
import random
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hasten.cost.growing import (
    calibrate,
    deepen,
    drawn_places,
    identity_layer,
    narrow,
    widen,
    with_inputs,
    with_outputs,
)
from hasten.cost.preserving import check_same, difference
from hasten.errors import HastenError


def unit(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())


class Joined(nn.Module):
    """Two branches that are concatenated with the input, a depthwise layer, and a map that is flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = unit(2, 4), unit(2, 3)
        self.norm = nn.BatchNorm2d(9)
        self.deep = nn.Conv2d(9, 9, 3, padding=1, groups=9)
        self.mixed = nn.Conv2d(9, 5, 1)
        self.act = nn.ReLU()
        self.dense = nn.Linear(5 * 4, 6)
        self.dense_act = nn.ReLU()
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.left(x), x, self.right(x)], 1)
        x = self.act(self.mixed(self.deep(torch.relu(self.norm(x)))))
        x = torch.flatten(nn.functional.max_pool2d(x, 2), 1)
        return self.last(self.dense_act(self.dense(x)))


def settled(network: nn.Module, *shape: int) -> nn.Module:
    """With statistics of its own, in float64."""
    torch.manual_seed(1)
    network = network.double().train()
    for _ in range(3):
        network(torch.randn(16, *shape, dtype=torch.float64))
    return network.eval()


@pytest.fixture
def joined() -> nn.Module:
    return settled(Joined(), 2, 4, 4)


@pytest.fixture
def x() -> tuple[Tensor]:
    torch.manual_seed(2)
    return (torch.randn(8, 2, 4, 4, dtype=torch.float64),)


GROWING = {"left.0": 7, "right.0": 11, "mixed": 9, "dense": 8}


@pytest.mark.parametrize("name", GROWING)
def test_a_wider_layer_keeps_what_is_computed(joined: nn.Module, x: tuple[Tensor], name: str) -> None:
    grown = widen(joined, {name: GROWING[name]}, x, seed=3)
    check_same(joined, grown.network, x, 1e-6)
    assert len(grown.network.get_submodule(name).weight) == GROWING[name]
    single = joined.float(), widen(joined.float(), {name: GROWING[name]}, (x[0].float(),), seed=3).network
    check_same(*single, (x[0].float(),), 1e-5)


def test_moves_together_keep_it_and_noise_does_not(joined: nn.Module, x: tuple[Tensor]) -> None:
    grown = widen(joined, GROWING, x, seed=3).network
    grown = deepen(grown, "left.0", x, kernel=3)
    grown = deepen(grown, "mixed", x, kernel=5)
    grown = widen(grown, {"left.0": 12}, x, seed=4).network
    grown = deepen(grown, "dense", x)
    assert calibrate(grown, x) == 1  # of these three the first alone has a normalization
    check_same(joined, grown, x, 1e-6)
    assert 1e-6 < difference(joined, widen(joined, GROWING, x, noise=1e-2).network, x) < 0.1
    assert 1e-7 < difference(joined, deepen(joined, "mixed", x, noise=1e-3), x) < 0.1


def test_pruning_the_copies_gives_the_old_weights_back(joined: nn.Module, x: tuple[Tensor]) -> None:
    grown = widen(joined, GROWING, x, seed=5)
    back = narrow(grown.network, grown.places, x)
    for (name, old), new in zip(joined.state_dict().items(), back.state_dict().values(), strict=True):
        # What reads copies sums thirds: exact but for their last bit.
        torch.testing.assert_close(new, old, rtol=4e-16, atol=0, msg=name)
    assert torch.equal(back.get_submodule("left.0").weight, joined.get_submodule("left.0").weight)  # type: ignore[arg-type]


def test_a_further_layer_has_the_dropout_of_the_one_before() -> None:
    network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 2)).eval()
    x = (torch.randn(5, 4),)
    made = deepen(network, "0", x)
    assert [type(part) for part in made] == [nn.Linear, nn.ReLU, nn.Dropout] * 2 + [nn.Linear]
    assert isinstance(made[5], nn.Dropout)
    assert made[5].p == 0.3
    assert made[5] is not made[2]
    check_same(network, made, x, 1e-6)
    # Dropped for an activation that is no module too.

    class Functions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.dropped, self.second = nn.Linear(4, 6), nn.Dropout(0.3), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.dropped(torch.relu(self.first(x))))  # type: ignore[no-any-return]

    written = Functions().eval()
    deeper = deepen(written, "first", x)
    assert sum(isinstance(part, nn.Dropout) for part in deeper.modules()) == 2
    check_same(written, deeper, x, 1e-6)


def test_shares_of_copies_sum_to_the_old_weight() -> None:
    layer, places = nn.Conv2d(4, 3, 3).double(), torch.tensor([0, 1, 2, 3, 1, 1, 3])
    made = with_inputs(layer, places)
    total = torch.zeros_like(layer.weight).index_add_(1, places, made.weight.detach())
    torch.testing.assert_close(total, layer.weight.detach(), rtol=1e-15, atol=0)
    assert torch.equal(made.weight[:, 4], layer.weight[:, 1] / 3)
    assert torch.equal(made.weight[:, 0], layer.weight[:, 0])
    # Two copies each, and halves sum without a rounding.
    twice = with_inputs(layer, torch.tensor([0, 1, 2, 3] * 2)).weight
    assert torch.equal(twice[:, :4] + twice[:, 4:], layer.weight)


def test_copies_are_drawn_and_have_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    places = drawn_places(4, 64, generator)
    assert places[:4].tolist() == [0, 1, 2, 3]
    assert places[4:].tolist() != [i % 4 for i in range(60)]
    assert set(places[4:].tolist()) == {0, 1, 2, 3}
    layer = nn.Linear(50, 4)
    made = with_outputs(layer, places, 1e-2, generator)
    noise = (made.weight - layer.weight[places]).detach()
    assert not noise[:4].any()
    assert float(noise[4:].std()) == pytest.approx(1e-2 * float(layer.weight.detach().std()), rel=0.1)
    with pytest.raises(HastenError, match="at least as many"):
        drawn_places(4, 3, generator)


def test_an_inserted_normalization_changes_nothing_in_training_either() -> None:
    torch.manual_seed(0)
    network: Any = nn.Sequential(
        unit(2, 4), nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)
    )
    x = torch.randn(64, 2, 4, 4)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            norm.momentum = 1.0  # the statistics are this batch's
    network.train()(x)
    for norm, count in ((network[0][1], 64 * 16), (network[3], 64)):
        norm.momentum = 0.0
        norm.running_var *= (count - 1) / count  # what a batch is divided by, where the running one is unbiased
    grown: Any = network
    for name in ("0.0", "0.0", "4", "4"):
        grown = deepen(grown, name, (x,))
    assert len(grown) == len(network) + 2 + 2 * 3  # units are put beside units, single layers beside layers
    assert difference(network, grown, (x,)) < 1e-5
    # A mean of 0 and a variance of 1 are not the batch's.
    assert (copy.deepcopy(grown).train()(x) - network.train()(x)).abs().max() > 1e-2
    grown.eval()
    assert calibrate(grown, (x,)) == 4
    assert calibrate(grown, (x,)) == 0
    assert not grown.training
    check_same(network, grown, (x,))
    torch.testing.assert_close(grown.train()(x), network.train()(x), rtol=0, atol=1e-3)


def test_a_layer_without_a_list_around_it_is_deepened(joined: nn.Module, x: tuple[Tensor]) -> None:
    grown = deepen(joined, "mixed", x)
    assert isinstance(grown.get_submodule("act"), nn.Sequential)
    check_same(joined, grown, x, 1e-9)


def test_a_layer_that_changes_nothing() -> None:
    generator = torch.Generator()
    for layer in (nn.Linear(3, 5), nn.Conv2d(3, 5, 3, bias=False)):
        made = identity_layer(layer, 5, 0.0, generator)
        y = torch.randn(2, 5) if isinstance(layer, nn.Linear) else torch.randn(2, 5, 6, 6)
        assert torch.equal(made(y), y)
        assert (made.bias is None) == (layer.bias is None)
    with pytest.raises(HastenError, match="an odd kernel"):
        identity_layer(nn.Conv2d(3, 5, 3), 2, 0.0, generator)


class Added(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(x + self.first(x)))


class Depends(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("network", "name", "why"),
    [
        (Added(), "first", "add does not keep channels apart"),
        (Added(), "second", "is the network's answer"),
        (Added(), "third", "has no layer 'third'"),
        (nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4)), "0", "1 does not keep channels apart"),
        (nn.Sequential(nn.Linear(4, 4), nn.ReLU()), "1", "neither a convolution nor a linear layer"),
        (nn.Sequential(*[nn.Linear(4, 4)] * 2, nn.Linear(4, 4)), "0", "called 2 times|calls no layer"),
    ],
)
def test_what_cannot_be_followed_is_refused(network: nn.Module, name: str, why: str) -> None:
    before = {n: p.clone() for n, p in network.state_dict().items()}
    with pytest.raises(HastenError, match=why):
        widen(network, {name: 6}, (torch.zeros(2, 4),))
    assert all(torch.equal(p, before[n]) for n, p in network.state_dict().items())


def test_what_cannot_be_deepened_is_refused() -> None:
    x = (torch.zeros(2, 4),)
    with pytest.raises(HastenError, match="is followed by 1"):
        deepen(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)), "0", x)
    with pytest.raises(HastenError, match="calls no layer"):
        deepen(Added(), "none", x)
    with pytest.raises(HastenError, match="cannot trace"):
        deepen(Depends(), "none", x)


def test_random_moves_keep_what_random_networks_compute() -> None:
    rng = random.Random(0)
    for trial in range(4):
        torch.manual_seed(trial)
        widths = [rng.randint(2, 4) for _ in range(3)]
        parts: list[Any] = [unit(a, b) for a, b in zip([2, *widths], widths, strict=False)]
        network: Any = settled(
            nn.Sequential(nn.Sequential(*parts), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * widths[-1], 3)), 2, 4, 4
        )
        x = (torch.randn(8, 2, 4, 4, dtype=torch.float64),)
        grown = network
        for move in range(9):
            name = f"0.{rng.randrange(len(grown[0]))}.0"
            if rng.random() < 0.5:
                size = len(grown.get_submodule(name).weight) + rng.randint(1, 3)
                grown = widen(grown, {name: size}, x, seed=move).network
            else:
                grown = deepen(grown, name, x, kernel=rng.choice((1, 3, 5)), seed=move)
                calibrate(grown, x)
        assert difference(network, grown, x) < 1e-6


class Ordinary(nn.Module):
    """As people write networks: functions as activations, one rectifier for all, a view in front of the last layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 5, 3, padding=1), nn.Conv2d(5, 3, 1)
        self.bn2 = nn.BatchNorm2d(5)
        self.relu = nn.ReLU(inplace=True)
        self.fc1, self.fc2 = nn.Linear(3 * 4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> Tensor:
        x = nn.functional.relu(self.conv1(x))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.relu(self.conv3(x))
        if mask is not None:
            x = x * mask
        x = x.view(x.size(0), -1)
        return self.fc2(self.fc1(x).relu()) * scale


@pytest.mark.parametrize("name", ["conv1", "conv2", "conv3", "fc1"])
def test_networks_as_people_write_them_grow(name: str, x: tuple[Tensor]) -> None:
    network = settled(Ordinary(), 2, 4, 4)
    wide = widen(network, {name: 9}, x, seed=1).network
    check_same(network, wide, x, 1e-9)
    deep = deepen(wide, name, x)
    calibrate(deep, x)
    check_same(network, deep, x, 1e-9)
    before, after = (sum(isinstance(m, nn.Conv2d | nn.Linear) for m in n.modules()) for n in (network, deep))
    assert after == before + 1
    assert difference(network, deepen(network, name, x, noise=0.1), x) > 0, "the new layer is called"


class Ahead(nn.Sequential):
    """A list that takes its layers by their numbers."""

    def forward(self, x: Tensor) -> Tensor:
        for i in (0, 1, 3):
            x = self[i](x)
        return x


class Taken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.features[3](self.features[2](self.features[1](self.features[0](x))))


def named_layers() -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(first=nn.Linear(4, 6), norm=nn.BatchNorm1d(6), act=nn.ReLU(), last=nn.Linear(6, 3))
    )


@pytest.mark.parametrize(
    ("network", "name"),
    [
        (named_layers(), "first"),
        (Ahead(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 4)), "0"),
        (Taken(), "features.0"),
    ],
)
def test_a_list_with_names_or_taken_by_numbers_grows(network: nn.Module, name: str) -> None:
    network = settled(network, 4)
    x = (torch.randn(3, 4, dtype=torch.float64),)
    grown = widen(network, {name: 7}, x, seed=1).network
    grown = deepen(grown, name, x)
    calibrate(grown, x)
    check_same(network, grown, x, 1e-9)
    assert difference(network, deepen(network, name, x, noise=0.1), x) > 0, "the new layer is called"


class Tokens(nn.Module):
    """Linear layers on tokens (batch, tokens, width), as many tokens as numbers of each."""

    def __init__(self, joined: bool) -> None:
        super().__init__()
        self.joined = joined
        self.inner = nn.Linear(4, 4)
        self.outer = nn.Linear(4 if joined else 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.inner(x))
        return self.outer(torch.cat([y, y], 1) if self.joined else y.flatten(1))


def test_channels_are_followed_in_the_dimension_that_they_are_in() -> None:
    x = (torch.randn(2, 4, 4, dtype=torch.float64),)
    for joined in (False, True):
        network = Tokens(joined).double().eval()
        if joined:  # along tokens: no channel is copied by that
            with pytest.raises(HastenError, match="cat does not keep channels apart"):
                widen(network, {"inner": 6}, x)
        else:
            check_same(network, widen(network, {"inner": 6}, x, seed=1).network, x, 1e-9)
    maps = nn.Sequential(nn.Conv2d(2, 4, 1), nn.Flatten(2), nn.Flatten(1), nn.Linear(4 * 9, 2)).double().eval()
    image = (torch.randn(2, 2, 3, 3, dtype=torch.float64),)
    check_same(maps, widen(maps, {"0": 6}, image, seed=1).network, image, 1e-9)
    single = nn.Sequential(nn.Conv2d(2, 3, 1), nn.Flatten(), nn.Linear(9, 2)).double().eval()
    with pytest.raises(HastenError, match="2 does not keep channels apart"):
        widen(single, {"0": 6}, (image[0][0],))  # without a batch its channels stay what they are
    averaged = nn.Sequential(nn.Conv2d(2, 3, 1), Mean()).double().eval()
    with pytest.raises(HastenError, match="mean does not keep channels apart"):
        widen(averaged, {"0": 6}, image)


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((1, 2))


class Fixed(nn.Module):
    """A view that says how wide it is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(2, 3, 1), nn.Linear(27, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.conv(x).view(-1, 27))


class Tied(nn.Module):
    def __init__(self, apart: bool) -> None:
        super().__init__()
        self.apart = apart
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 4)
        self.other = nn.Linear(4, 6)
        if not apart:
            self.other.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.last(self.first(x))
        return nn.functional.linear(y, self.first.weight) if self.apart else self.other(y)


def hooked_layers() -> nn.Module:
    network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    network[0].register_forward_hook(lambda module, given, answer: 2 * answer)
    return network


def computed_weight() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 6)), nn.ReLU(), nn.Linear(6, 3))


class TwoNames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)
        self.alias = self.first

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.alias(x))


class Silent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("network", "name", "shape", "why"),
    [
        (Fixed(), "conv", (1, 2, 3, 3), "says that it is 27 wide: write -1"),
        (Tied(False), "first", (2, 4), "shares its weight with other.weight"),
        (Tied(True), "first", (2, 4), "read apart from it"),
        (hooked_layers(), "0", (2, 4), "its hooks see"),
        (computed_weight(), "0", (2, 4), "its weight is made of others"),
        (TwoNames(), "first", (2, 4), "it stands in 2 places, first and alias"),
        (nn.Sequential(nn.Linear(4, 6), Silent()), "0", (2, 4), r"cannot trace this network \(NotImplementedError\)"),
        (nn.Sequential(nn.Linear(4, 6), nn.Linear(5, 2)), "0", (2, 4), "fails on these inputs"),
    ],
)
def test_what_would_compute_something_else_is_refused(
    network: nn.Module, name: str, shape: tuple[int, ...], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(HastenError, match=why) as told:
        widen(network.eval(), {name: 9}, (torch.randn(shape),))
    assert "\n" not in str(told.value)
    assert "Traceback" not in capsys.readouterr().err


def test_what_else_a_layer_has_stays() -> None:
    network: Any = settled(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)), 4)
    network[0].bias.requires_grad_(False)
    x = (torch.randn(5, 4, dtype=torch.float64),)
    grown = widen(network, {"0": 9}, x, seed=1).network
    check_same(network, grown, x, 1e-9)
    assert not grown[0].bias.requires_grad
    assert (grown[0].out_features, grown[1].num_features, grown[3].in_features) == (9, 9, 9)
    deep = widen(deepen(network, "0", x), {"0": 9}, x, seed=1).network
    assert calibrate(deep, x) == 1, "a new normalization that grows is still to be calibrated"
    check_same(network, deep, x, 1e-9)


def test_a_failing_call_leaves_no_hooks() -> None:
    network = deepen(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU()), "0", (torch.zeros(2, 4),))
    network.train()
    with pytest.raises(RuntimeError):
        calibrate(network, (torch.zeros(2, 5),))
    assert network.training
    assert not any(m._forward_pre_hooks for m in network.modules())
