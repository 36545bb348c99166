"""`python -m stillhouse` is the command `stillhouse`."""

from .cli.app import main

main()
