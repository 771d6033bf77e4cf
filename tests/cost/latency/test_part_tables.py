"""Published latencies of parts: the shipped table, sums of ProxylessNAS' space by it, and what is no table."""

from __future__ import annotations

from pathlib import Path

import pytest

from hasten.cost.latency.expected import ExpectedLatency
from hasten.cost.latency.part_tables import part_key, pixel_1_parts, read_part_table
from hasten.errors import HastenError
from hasten.models.vision.proxyless import ProxylessConfig
from hasten.search.networks.members.proxyless import ProxylessSpace

SPACE = ProxylessSpace()


def everywhere(kernel: int, expand: int) -> tuple[int, ...]:
    return (SPACE.config.blocks.index((kernel, expand)),) * len(SPACE.config.places())


def test_sums_of_the_phone_s_table_are_the_published_ones() -> None:
    table = pixel_1_parts()
    assert len(table) == 72
    once = {"Conv": 4.0838, "Conv_1": 3.0886, "Logits": 0.3096}  # milliseconds
    assert {kind: round(1e3 * s, 4) for key, s in table.items() if (kind := key.partition("-")[0]) in once} == once
    latency = SPACE.published_latency(table)
    known = {(3, 3): 76.05, (5, 3): 87.72, (3, 6): 136.47, (7, 6): 191.03}
    assert {key: round(1e3 * latency(everywhere(*key)), 2) for key in known} == known
    assert round(1e3 * latency(SPACE.smallest()), 2) == 29.61  # nothing wherever nothing may be
    expected = ExpectedLatency.of_choices(latency, SPACE.config.choices())
    assert expected.slowest == pytest.approx(latency(everywhere(7, 6)))
    # The published networks have 32 channels where the table has 24.
    other = ProxylessSpace(ProxylessConfig((32, 40, 80, 96, 192, 320)))
    with pytest.raises(HastenError, match="lacks expanded_conv-input:112x112x16-output:56x56x32-expand:3"):
        other.published_latency(table)(everywhere(3, 3))


def test_other_tables_of_the_format_are_read(tmp_path: Path) -> None:
    path = tmp_path / "parts.yaml"
    path.write_text("# a phone\nAvgPool2D-input:7x7x1152-output:1x1x1152:\n  count: 495\n  mean: 0.015\n  std: 1.0\n")
    assert read_part_table(path) == {part_key("AvgPool2D", (7, 7, 1152), (1, 1, 1152)): pytest.approx(15e-6)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no mean of any part"),
        ("  mean: 3\n", "line 1: a table of parts has lines"),
        ("nonsense\n", "line 1: a table of parts has lines"),
        ("A:\n  mean: fast\n", "line 2: a mean of 'fast' is no time"),
        ("A:\n  mean: -1\n", "line 2: a mean of '-1' is no time"),
        ("A:\n  mean: 1\nA:\n", "line 3: A is there twice"),
        ("A: 3\n", "line 1: A is there twice, or has something behind"),
    ],
)
def test_what_is_no_table_is_told_in_a_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "parts.yaml"
    path.write_text(text)
    with pytest.raises(HastenError, match=message) as told:
        read_part_table(path)
    assert "\n" not in str(told.value)
