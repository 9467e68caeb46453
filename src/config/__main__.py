"""Lists every key: python -m src.config [CONFIG]."""

import argparse
import dataclasses
import difflib

from src.config.conventions import table
from src.config.keys import Config, ConfigError
from src.config.reading import BACKBONES, describe_keys, load_config
from src.runtime.errors import one_line, run_command, shown
from src.runtime.masking import masked_keys


def names_of(key: str) -> list[str]:
    """The values that a key takes, or the names of whole backbones. Raises ConfigError where it takes any."""
    choices = {f.name: f.metadata.get("choices", ()) for f in dataclasses.fields(Config)}
    found = tuple(BACKBONES) if key == "backbone" else choices.get(key, ())
    if not found:
        raise ConfigError(f"--names {shown(key)}: not a key that takes one of a few names")
    return [str(c) for c in found]


def check_name(key: str, value: str) -> None:
    """Raises ConfigError, with the nearest, for a value that the key doesn't take."""
    names = names_of(key)
    if value not in names:
        near = difflib.get_close_matches(value, names, n=1, cutoff=0.5)
        raise ConfigError(
            f"{shown(value)} is none of {', '.join(names)}" + (f"; did you mean {near[0]}?" if near else "")
        )


def main() -> None:
    """Prints every key: python -m src.config [CONFIG]; with a file, that file's values instead of the defaults."""
    parser = argparse.ArgumentParser(prog="python -m src.config", description="Lists every key of the config.")
    parser.add_argument("config", nargs="?", help="YAML config file, whose values are listed (default: the defaults)")
    parser.add_argument("--conventions", action="store_true", help="list what each project's conventions stand for")
    parser.add_argument(
        "--names", nargs="+", metavar="WORD", help="KEY: list the names that it takes; KEY VALUE: refuse any other"
    )
    a = parser.parse_args()
    if a.names:
        key, *values = a.names
        for value in values:
            check_name(key, value)
        print(*([] if values else names_of(key)), sep="\n", end="" if values else "\n")
        return
    if a.conventions:
        print(table())
        return
    config = a.config
    for name, kind, value, doc in describe_keys(load_config(config) if config else None):
        text = one_line(str(masked_keys({name: value})[name]))
        print(f"{name} ({kind}) = {text if len(text) <= 60 else f'{text[:57]}...'}\n    {doc}")


if __name__ == "__main__":
    run_command(main)
