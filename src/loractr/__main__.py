"""`python -m loractr` is the command `loractr`."""

from loractr.cli import main

main()
