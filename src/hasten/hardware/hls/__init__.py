"""Circuits from loops: directives for high-level synthesis, the C++ that carries them, and running it as plain C++."""
