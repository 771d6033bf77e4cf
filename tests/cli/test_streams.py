"""What a verb tells on stderr is there at once, however Python was told to buffer."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

TELLS = """
from hasten.cli import streams
from hasten.cli.messages import say
streams.prepare()
say("begun")
input()
"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_line_is_read_before_the_process_ends(unbuffered: str) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    command = [sys.executable, "-c", TELLS]
    process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stdin is not None
    assert process.stderr.readline() == "begun\n"  # it waits for this line's answer: a kept line never comes
    process.communicate("\n", timeout=60)
    assert process.returncode == 0
