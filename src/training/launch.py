"""The name that src.runtime.launch had: python -m src.training.launch COMMAND still runs it."""

import sys

from src.runtime.launch import main

__all__: list[str] = []

if __name__ == "__main__":
    print("src.training.launch is src.runtime.launch now; the old name goes with the next release", file=sys.stderr)
    main()
