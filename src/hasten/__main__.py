"""``python -m hasten``: the command line."""

from hasten.cli import main

main()
