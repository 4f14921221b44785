"""`python -m clues.cli`."""

from clues.cli.program import process

if __name__ == "__main__":
    process()
