"""Emitted C++ carries its directives, compiles without a warning, and computes what the module computes."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hasten.errors import HastenError
from hasten.hardware.hls.directives import HlsDesign, StageDirectives, divisors, partitioned
from hasten.hardware.hls.emission import TYPES, bench, emit, parameters, pragmas
from hasten.hardware.hls.running import run_design
from hasten.search.codesign.hls import parallelized
from hasten.workload.loops import LoopProgram, loop_program

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "c++", "clang++"))), reason="no C++ compiler is here"
)


def small() -> tuple[nn.Module, torch.Tensor]:
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, padding=1), nn.Flatten(), nn.Linear(64, 6),
        nn.GELU(), nn.Linear(6, 4), nn.Softmax(-1),
    )  # fmt: skip
    return net, torch.randn(1, 2, 6, 6)


def encoder() -> tuple[nn.Module, torch.Tensor]:
    return nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, norm_first=True).eval(), torch.randn(1, 6, 8)


class Turned(nn.Module):
    """Halves traded, as rotary positions do, before a product."""

    def __init__(self) -> None:
        super().__init__()
        self.product = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.product(x)
        return y + torch.cat([-y[..., 4:], y[..., :4], x[..., :2]], -1)[..., 1:9]


def turned() -> tuple[nn.Module, torch.Tensor]:
    return Turned(), torch.randn(3, 8)


def anyhow(program: LoopProgram, rng: np.random.Generator, dataflow: bool = True) -> HlsDesign:
    """A design with directives drawn at random."""
    stages = {}
    for stage in program.stages:
        tile = {r: int(rng.choice(divisors(n))) for r, n in stage.loops}
        unroll = {r: int(rng.choice([d for d in divisors(t) if d <= 4])) for r, t in tile.items()}
        order = tuple(map(str, rng.permutation(list(stage.sizes))))
        stages[stage.name] = StageDirectives(order, tile, unroll, bool(rng.integers(2)), int(rng.integers(1, 4)))
    return partitioned(HlsDesign(program, stages, dataflow=dataflow))


@needs_compiler
@pytest.mark.parametrize("make", [small, encoder, turned])
@pytest.mark.parametrize("seed", range(3))
def test_emitted_code_computes_what_the_module_computes_under_any_directives(make: object, seed: int) -> None:
    torch.manual_seed(seed)
    module, x = make()  # type: ignore[operator]
    program = loop_program(module, x, name="net")
    x = torch.randn_like(x)
    (found,) = run_design(anyhow(program, np.random.default_rng(seed), seed % 2 == 0), module, x)
    with torch.no_grad():
        assert torch.allclose(found, module(x), atol=1e-5)


@needs_compiler
def test_a_causal_mask_and_two_results() -> None:
    class Heads(nn.Module):
        def forward(self, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = nn.functional.scaled_dot_product_attention(q, k, k, is_causal=True)
            return y, y.sum(-1).transpose(0, 2)

    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 2, 5, 4)
    program = loop_program(Heads(), q, k)
    for found, expected in zip(run_design(HlsDesign(program), Heads(), q, k), Heads()(q, k), strict=True):
        assert torch.allclose(found, expected, atol=1e-5)


def test_directives_are_in_the_source() -> None:
    module, x = small()
    program = loop_program(module, x, name="net")
    conv = program.stages[0]
    design = partitioned(
        HlsDesign(program, {conv.name: StageDirectives((), {}, {"k": 2, "c": 2}, interval=3)}, dataflow=True)
    )
    source = emit(design)
    told = pragmas(source)
    assert told.count("#pragma HLS DATAFLOW") == 1
    assert "#pragma HLS PIPELINE II=3" in told
    assert f"#pragma HLS ARRAY_PARTITION variable={conv.writes[0].array} type=cyclic factor=2 dim=1" in told
    assert "#pragma HLS ARRAY_PARTITION variable=input0 type=complete dim=1" in told, "both channels at once"
    assert sum("STREAM" in line for line in told) == len(program.arrays) - len(parameters(program))
    assert sum("INTERFACE" in line for line in told) == len(parameters(program))
    assert not any("DATAFLOW" in line or "STREAM" in line for line in pragmas(emit(HlsDesign(program))))
    plain = HlsDesign(program, {s.name: StageDirectives(pipeline=False) for s in program.stages})
    assert sum("PIPELINE off" in line for line in pragmas(emit(plain))) == len(program.stages)


def test_copies_that_fold_are_added_up_in_a_tree() -> None:
    program = loop_program(nn.Linear(12, 4), torch.randn(12))
    design = HlsDesign(program, {program.stages[0].name: StageDirectives(unroll={"k": 6})})
    lines = [line.strip() for line in emit(design).splitlines() if line.strip().startswith("part[")]
    assert lines[1:] == [f"part[{i}] = part[{i}] + part[{i + h}];" for h, count in ((3, 3), (2, 1), (1, 1))
                         for i in range(count)]  # fmt: skip


@pytest.mark.parametrize("number", TYPES)
def test_numbers_are_the_formats_under_synthesis_and_floats_elsewhere(number: str) -> None:
    program = loop_program(nn.Linear(4, 2), torch.randn(4))
    source = emit(HlsDesign(program, number=number))
    assert ("__SYNTHESIS__" in source.split("static inline")[0]) == (number != "fp32")
    assert TYPES[number][1] in source
    assert "typedef float number;" in source


def test_names_are_identifiers_and_none_is_used_twice() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.int = nn.Linear(3, 3)
            self.total = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.total(self.int(x))

    source = emit(HlsDesign(loop_program(Odd(), torch.randn(3))))
    functions = re.findall(r"^static void (\w+)\(", source, re.MULTILINE)
    assert len(set(functions)) == len(functions) == 2


@needs_compiler
def test_what_does_not_compile_or_end_is_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = nn.Linear(4, 2)
    program = loop_program(module, torch.randn(4))
    with pytest.raises(HastenError, match="wants input0 of 4 elements"):
        run_design(HlsDesign(program), module, torch.randn(5))
    with pytest.raises(HastenError, match="wants input0"):
        run_design(HlsDesign(program), module)
    broken = bench(HlsDesign(program)).replace("typedef float number;", "typedef nothing number;")
    monkeypatch.setattr("hasten.hardware.hls.running.bench", lambda design: broken)
    with pytest.raises(HastenError, match="does not compile") as told:
        run_design(HlsDesign(program), module, torch.randn(4))
    assert "\n" not in str(told.value)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    compiler = tmp_path / "g++"
    for does, told_of in (
        ("printf '\\377\\376' >&2; exit 1", "does not compile"),
        ("exit 0", "does not run"),  # and leaves no program
        ("while [ \"$1\" != -o ]; do shift; done; printf '#!/bin/sh\\n' > $2; chmod +x $2", "gives 0 numbers"),
    ):
        compiler.write_text(f"#!/bin/sh\n{does}\n")
        compiler.chmod(0o755)
        with pytest.raises(HastenError, match=told_of):
            run_design(HlsDesign(program), module, torch.randn(4))
    compiler.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HastenError, match=r"install g\+\+"):
        run_design(HlsDesign(program), module, torch.randn(4))


@pytest.mark.parametrize("make", [small, encoder])
def test_the_rules_for_bugs_find_none_until_one_is_put_in(make: object) -> None:
    pytest.importorskip("tree_sitter_cpp")
    from hasten.tasks.hls.rules import check

    module, x = make()  # type: ignore[operator]
    program = loop_program(module, x)
    for copies in (1, 16):
        source = emit(parallelized(program, copies))
        assert check(source) == []
    assert "factor=2" in source
    assert check(source.replace("type=cyclic factor=2", "type=cyclic factor=7", 1)) == ["FND"]
