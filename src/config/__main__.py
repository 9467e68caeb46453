"""Lists every key: python -m src.config [CONFIG]."""

import argparse

from src.config.conventions import table
from src.config.reading import describe_keys, load_config
from src.runtime.errors import one_line, run_command
from src.runtime.masking import masked_keys


def main() -> None:
    """Prints every key: python -m src.config [CONFIG]; with a file, that file's values instead of the defaults."""
    parser = argparse.ArgumentParser(prog="python -m src.config", description="Lists every key of the config.")
    parser.add_argument("config", nargs="?", help="YAML config file, whose values are listed (default: the defaults)")
    parser.add_argument("--conventions", action="store_true", help="list what each project's conventions stand for")
    a = parser.parse_args()
    if a.conventions:
        print(table())
        return
    config = a.config
    for name, kind, value, doc in describe_keys(load_config(config) if config else None):
        text = one_line(str(masked_keys({name: value})[name]))
        print(f"{name} ({kind}) = {text if len(text) <= 60 else f'{text[:57]}...'}\n    {doc}")


if __name__ == "__main__":
    run_command(main)
