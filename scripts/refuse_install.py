"""pip's build backend (https://peps.python.org/pep-0517/): nothing here is to be installed, and pip says so."""

import sys

sys.exit(
    "error: this project isn't installed as a package, it runs from its folder: pip install -r requirements.txt,"
    " then python train.py ..., or put the folder on PYTHONPATH to import src from elsewhere"
)
