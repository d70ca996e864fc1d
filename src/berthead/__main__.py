"""`python -m berthead`."""

from berthead.cli import main

main()
