"""``python -m kindgene``: the command, for launchers that want a module."""

from kindgene.cli.main import main

main()
