"""`python -m relay` is the `relay` command."""

from relay.operation.cli import main

main()
