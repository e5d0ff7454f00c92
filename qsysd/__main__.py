"""`python -m qsysd`."""

from qsysd.cli import main

main()
