"""``python -m hasten``: the command line."""

from hasten.cli import main

if __name__ == "__main__":
    main()
