"""`python -m qsysd`."""

from qsysd.cli.main import main

main()
