"""`python -m clues`, which is also what `accelerate launch -m clues` starts."""

from clues.cli.program import main

if __name__ == "__main__":
    main()
