"""`python -m clues`, which is also what `accelerate launch -m clues` starts."""

from clues.cli.program import process

if __name__ == "__main__":
    process()
