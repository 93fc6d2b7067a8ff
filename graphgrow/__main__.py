"""`python -m graphgrow` is the command `graphgrow`."""

from graphgrow.cli import main

main()
