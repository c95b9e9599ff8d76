"""`python -m vidlearn`, which torchrun needs, is the command `vidlearn`."""

from vidlearn.cli import main

main()
