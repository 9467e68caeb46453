"""What README.md and the other pages say exists: links, files, commands, options; and is said once."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib.util
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from src.config import Config, describe_keys
from src.config.keys import ALIASES
from tests.conftest import all_cores

ROOT = Path(__file__).parents[1]
# in README's order, in which their blocks run
PAGES = [ROOT / "README.md", *(ROOT / p for p in re.findall(r"\((docs/\w+\.md)\)", (ROOT / "README.md").read_text()))]
PAGES = list(dict.fromkeys(PAGES)) + [ROOT / f"{name}.md" for name in ("CONTRIBUTING", "CHANGELOG", "SECURITY")]
NAMES = [str(p.relative_to(ROOT)) for p in PAGES]
ROOMS = ("src", "configs", "scripts", "benchmarks", "tests", "ascend310_infer", "docs")
BUILT = ("ascend310_infer/build/", "ascend310_infer/build-aarch64/", "docs/.")
FENCE = re.compile(r"^(<!-- run -->\n)?```(\w*)\n(.*?)^```$", re.M | re.S)
COMMAND = re.compile(
    r"(?:python3?\s+-m\s+(?P<module>[\w.]+)|(?:^|\s)(?P<file>(?:scripts/)?\w+\.py)|bash\s+(?P<script>\S+\.sh)"
    r"|(?P<program>\S*rcnn_infer))(?![\w.:])"
)
OPTION = re.compile(r"(?<![\w-])--([A-Za-z][\w.]*)")
OTHERS = {"--require-hashes"}  # options of other programs that pages name by themselves


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def prose_of(name: str) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("\n", text_of(name))


def shell_lines(name: str) -> list[str]:
    """The commands of a page's shell blocks, continued lines joined; with comments, which name more options."""
    blocks = [body for _, language, body in FENCE.findall(text_of(name)) if language == "bash"]
    return "".join(blocks).replace("\\\n", " ").splitlines()


def inline_code(name: str) -> list[str]:
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose_of(name))]


@functools.cache
def anchors(name: str) -> set[str]:
    """What a link's part after # can be, as GitHub makes it of headings."""
    headings = re.findall(r"^#+ (.+)$", prose_of(name), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(name: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", prose_of(name)))


def test_readme_is_short():
    text = text_of("README.md")
    assert len(text.splitlines()) <= 200
    assert len(text.split()) <= 2000


@pytest.mark.parametrize("page", NAMES)
def test_links_lead_somewhere(page):
    for link in links(page):
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(os.path.relpath(target, ROOT)), link


def test_every_page_is_reached_and_begins_with_its_contents():
    assert {p.name for p in (ROOT / "docs").iterdir()} == {Path(n).name for n in NAMES if n.startswith("docs/")}
    for page in NAMES:
        if not page.startswith("docs/"):
            continue
        top, *sections = re.split(r"^## ", prose_of(page), flags=re.M)
        listed = re.findall(r"^- \[(.+)\]\(#", top, re.M)
        assert listed == [section.splitlines()[0] for section in sections], page


def module_file(module: str) -> Path | None:
    """The file that python -m runs; None for a module that isn't this project's."""
    if module.split(".")[0] not in ("src", "benchmarks"):
        return None
    path = ROOT / module.replace(".", "/")
    return path / "__main__.py" if path.is_dir() else path.with_suffix(".py")


def commands(line: str) -> list[tuple[Path | str, str]]:
    """Each command of ours in a line, by its file (that of another's module by its name), and what follows it."""
    found = list(COMMAND.finditer(line))
    out = []
    for m, end in zip(found, [m.start() for m in found][1:] + [len(line)]):
        if m["module"]:
            what = module_file(m["module"]) or m["module"]
        else:
            what = ROOT / (m["file"] or m["script"] or "ascend310_infer/src/main.cc")
        out.append((what, line[m.end() : end]))
    return out


@functools.cache
def options_of(file: Path) -> tuple[frozenset[str], bool]:
    """The options that a command's source names, and whether every key of the config is one."""
    source = file.read_text(encoding="utf-8")
    if file.suffix != ".py":
        names = frozenset(re.findall(r"--(\w[\w-]*)", source))
        return names, "EXTRA_ARGS" in source or '"$@"' in source
    imported = re.findall(r"^from (benchmarks\.\w+) import .*\badd_arguments\b", source, re.M)
    names, takes_keys = set(), bool(re.search(r"\b(config_from_arguments|parse_overrides)\(", source))
    for text in (source, *(module_file(m).read_text() for m in imported)):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
                names |= {a.value.lstrip("-") for a in node.args if isinstance(a, ast.Constant)}
                # f"--{name}" in a loop: whatever it is
                takes_keys |= any(isinstance(a, ast.JoinedStr) for a in node.args)
        takes_keys |= bool(imported)
    return frozenset(names | ({"config_path"} if "add_config_arguments(" in source else set())), takes_keys


KEYS = {name for name, *_ in describe_keys()} | set(ALIASES) | {"backbone", "KEY"}


@pytest.mark.parametrize("page", NAMES)
def test_commands_and_their_options_exist(page):
    for line in shell_lines(page) + [code for code in inline_code(page) if " " in code]:
        for what, rest in commands(line):
            if isinstance(what, str):
                assert importlib.util.find_spec(what), line
                continue
            assert what.is_file(), line
            if what.suffix == ".py":
                assert "__main__" in what.read_text(), f"{what} runs nothing: {line}"
            names, takes_keys = options_of(what)
            for option in OPTION.findall(rest):
                assert option in names or (takes_keys and option in KEYS), f"{what.name} has no --{option}: {line}"


@pytest.mark.parametrize("page", NAMES)
def test_options_in_prose_are_of_some_command(page):
    sources = [p for folder in (".", "scripts", "ascend310_infer", "benchmarks", "src") for p in sorted(_files(folder))]
    known = KEYS.union(*(options_of(p)[0] for p in sources), options_of(ROOT / "ascend310_infer/src/main.cc")[0])
    # pytest's own, of tests/conftest.py
    known |= {"full"}
    for code in inline_code(page):
        for option in OPTION.findall(code):
            assert option in known or code.split()[0] in ("pip", "docker") or code in OTHERS, code


def _files(folder: str) -> list[Path]:
    pattern = "**/*" if folder == "src" else "*"
    return [p for p in (ROOT / folder).glob(pattern) if p.suffix in (".py", ".sh") and p.is_file()]


@pytest.mark.parametrize("page", NAMES)
def test_files_that_are_named_exist(page):
    plain = [re.sub(r"(^|\s)#.*", "", line) for line in shell_lines(page)]
    words = [w for line in plain for w in line.split()] + inline_code(page)
    for word in words:
        word = word.strip("\"'").partition(":")[0]
        if not re.fullmatch(r"[\w./*-]+", word) or re.search(r"[A-Z]{3}", word) or word.startswith(BUILT):
            continue  # placeholders, options, and what is built
        ours = word.split("/")[0] in ROOMS and "/" in word
        if ours or re.fullmatch(r"requirements[\w-]*\.(txt|lock)", word):
            assert list(ROOT.glob(word.rstrip("/"))), word


def test_keys_in_key_tables_are_the_config_s():
    groups = {f.name for f in dataclasses.fields(Config)} | {name.rpartition(".")[2] for name in KEYS}
    for page in ("docs/data.md", "docs/augmentation.md", "docs/training.md"):
        tables = re.findall(r"^\| key \| meaning \|\n\| --- \| --- \|\n((?:\|.*\n)+)", text_of(page), re.M)
        assert tables, page
        for row in "".join(tables).splitlines():
            for name in re.findall(r"`([\w.]+)`", row.split("|")[1]):
                assert name in KEYS or name in groups, name


def test_no_sentence_stands_on_two_pages():
    places = defaultdict(set)
    for page in NAMES:
        for paragraph in re.split(r"\n\s*\n|\n(?=[|#-])|\|", prose_of(page)):
            for sentence in re.split(r"(?<=[.!?:;])\s+", " ".join(paragraph.split())):
                if len(sentence.split()) > 8:
                    places[sentence.strip("- ").rstrip(".:;").lower()].add(page)
    assert {s: p for s, p in places.items() if len(p) > 1} == {}


def runnable(page: str) -> list[str]:
    return [body for run, language, body in FENCE.findall(text_of(page)) if run and language == "bash"]


@pytest.mark.full
def test_marked_blocks_run(tmp_path):
    """In a folder that looks like a checkout, one after the other, as a reader would who goes from page to page."""
    for entry in ROOT.iterdir():
        if entry.name not in ("train_outputs", "demo_outputs") and not entry.name.startswith("."):
            (tmp_path / entry.name).symlink_to(entry)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    blocks = [(page, body) for page in NAMES for body in runnable(page)]
    assert len(blocks) > 5
    with all_cores():
        for page, body in blocks:
            done = subprocess.run(
                ["bash", "-euc", body], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
            )
            assert done.returncode == 0, f"{page}:\n{body}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    assert (tmp_path / "report/report.html").is_file()
    assert (tmp_path / "predicted/predictions.json").is_file()


def test_results_are_those_of_the_kept_runs(capsys):
    from benchmarks.common import print_table
    from benchmarks.real_data import COLUMNS, kept

    print_table("", COLUMNS, kept())
    table = capsys.readouterr().out.strip()
    assert table in text_of("docs/results.md")
