"""`python -m clues.cli`."""

from clues.cli.program import main

if __name__ == "__main__":
    main()
