from __future__ import annotations

from pathlib import Path

import pytest

from hasten.errors import HastenError
from hasten.hardware.chips.streaming_chip import streaming_chip, streaming_chips


def test_every_chip_of_the_catalogue_is_read() -> None:
    assert "sn40l" in streaming_chips()
    for name in streaming_chips():
        assert streaming_chip(name).name == name
        assert streaming_chip(name).source


def test_a_socket_and_a_node_are_as_published() -> None:
    socket = streaming_chip("sn40l")
    assert socket.on_chip == 520 * 2**20
    node = socket.node(8)
    assert (node.sockets, node.compute_units, node.store_bytes) == (8, 8320, 12 * 2**40)
    assert node.store_bandwidth == 1e12
    assert node.flops == 8 * 638e12
    for sockets in (0, -1, 1.5):
        with pytest.raises(HastenError, match="give at least 1"):
            socket.node(sockets)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("bandwidth = 1.8e12", "bandwidth = 0"),
        ("store_bandwidth = 125e9", "store_bandwidth = -1"),
        ("flops = 638e12", "flops = inf"),
        ("compute_units = 1040", "compute_units = 0"),
        ('dtype = "bf16"', 'dtype = "bf17"'),
        ('title = "', 'tilte = "'),
    ],
)
def test_impossible_figures_are_refused_in_one_line(old: str, new: str, tmp_path: Path) -> None:
    import hasten.hardware.chips.streaming_chip as module

    text = (Path(module.__file__).parent / "streaming" / "sn40l.toml").read_text("utf-8")
    assert old in text
    (tmp_path / "chip.toml").write_text(text.replace(old, new, 1))
    with pytest.raises(HastenError) as error:
        streaming_chip(tmp_path / "chip.toml")
    assert "\n" not in str(error.value)
