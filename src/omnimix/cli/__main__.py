"""`python -m omnimix.cli` is the command `omnimix`."""

from . import main

main()
