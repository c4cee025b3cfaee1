"""`python -m trace_transfer` is the command line."""

from trace_transfer.cli import main

if __name__ == "__main__":
    main()
