"""MatMulFreeLM: published sizes, its bounds, decoding, packing and files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hasten.errors import HastenError
from hasten.models import MatMulFreeConfig, MatMulFreeLM, named


def small() -> MatMulFreeLM:
    torch.manual_seed(0)
    return MatMulFreeLM(MatMulFreeConfig(32, 3, 50, 64)).eval()


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("matmul-free-370m", 374_108_160),
        ("matmul-free-1.3b", 1_364_779_008),
        ("matmul-free-2.7b", 2_702_357_504),
    ],
)
def test_published_parameter_counts(name: str, count: int) -> None:
    assert sum(p.numel() for p in named.build(name).parameters()) == count


def test_state_of_the_1_3b_model() -> None:
    model = named.build("matmul-free-1.3b")
    assert isinstance(model, MatMulFreeLM)
    assert sum(t.nbytes for t in model.new_state(1)) == 24 * 2048 * 4


def test_bounds_start_at_zero_and_grow() -> None:
    model = small()
    torch.nn.init.normal_(model.lower_bounds)
    bounds = model.bounds()
    assert torch.all(bounds[0] == 0)
    assert torch.all(bounds.diff(dim=0) > 0)
    assert torch.all(bounds < 1)


def test_decoding_is_the_whole_forward() -> None:
    model = small()
    ids = torch.randint(0, 50, (2, 6), generator=torch.Generator().manual_seed(1))
    made = model.generate(ids, 6)
    with torch.no_grad():
        for step in range(6, 12):
            assert torch.equal(made[:, step], model(made[:, :step])[:, -1].argmax(-1))


def test_packed_gives_the_same_logits_and_files(tmp_path: Path) -> None:
    model = small()
    ids = torch.randint(0, 50, (2, 11), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        plain = model(ids)
        model.save(tmp_path / "whole")
        model.pack()
        torch.testing.assert_close(model(ids), plain, rtol=1e-3, atol=1e-4)
        model.save(tmp_path / "packed")
        again = MatMulFreeLM.load(tmp_path / "packed")
        assert again.packed
        torch.testing.assert_close(again(ids), model(ids))
        torch.testing.assert_close(MatMulFreeLM.load(tmp_path / "whole")(ids), plain)
    (tmp_path / "packed" / "config.json").write_text('{"wings": 2}')
    with pytest.raises(HastenError, match="no configuration"):
        MatMulFreeLM.load(tmp_path / "packed")


def test_training_lowers_the_loss() -> None:
    model = small().train()
    ids = torch.randint(0, 50, (4, 20), generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(25):
        loss = torch.nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert all(p.grad is not None for p in model.parameters())
