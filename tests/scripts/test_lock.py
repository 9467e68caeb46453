"""requirements.lock: all that requirements.txt comes to, pinned and hashed, and how it is renewed."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def lock():
    """Each package's requirement and hashes, by its name."""
    text = (ROOT / "requirements.lock").read_text()
    out = {}
    for entry in text.replace("\\\n", " ").splitlines():
        if entry.startswith("#"):
            continue
        line, *hashes = entry.split("--hash=")
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        assert name not in out
        out[name] = requirement, [h.strip() for h in hashes]
    return out


def version(lock, name):
    return str(lock[canonicalize_name(name)][0].specifier).removeprefix("==")


def test_every_package_is_pinned_and_hashed(lock):
    for requirement, hashes in lock.values():
        assert re.fullmatch(r"==[\w.+!]+", str(requirement.specifier)), requirement
        assert hashes and all(re.fullmatch("sha256:[0-9a-f]{64}", h) for h in hashes), requirement


def test_it_names_no_index():
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text and not re.search("^-", text, re.M)


def test_what_is_required_is_locked(lock):
    lines = [line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    wanted = [Requirement(line) for line in lines if line]
    # on Python 3.11 and 3.12, whose lock it is
    wanted = [r for r in wanted if r.marker is None or r.marker.evaluate({"python_version": "3.11"})]
    assert len(wanted) >= 10
    for requirement in wanted:
        assert requirement.specifier.contains(version(lock, requirement.name)), requirement


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the lock is for Python 3.11 and 3.12")
def test_what_those_need_is_locked_too(lock):
    """Of what is installed here, as its own metadata say it."""
    checked = 0
    for name, (requirement, _) in lock.items():
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            assert requirement.marker and not requirement.marker.evaluate()
            continue
        if found.version != version(lock, name):
            continue
        for line in found.requires or ():
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                assert needed.specifier.contains(version(lock, needed.name)), f"{name} needs {needed}"
                checked += 1
    assert checked > 10


@pytest.fixture
def checkout(tmp_path):
    """A copy of what the script needs, and a stand-in for uv."""
    (tmp_path / "scripts").mkdir()
    for name in ("scripts/lock_requirements.sh", "scripts/common.sh", "requirements.txt", "requirements.lock"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    return tmp_path


def renew(checkout, uv, *words):
    program = checkout / "uv"
    program.write_text(f"#!/bin/bash\n{uv}\n")
    program.chmod(0o755)
    command = ["bash", "scripts/lock_requirements.sh", *words]
    environment = os.environ | {"UV": str(program)}
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=60)


def test_the_lock_is_renewed(checkout):
    find = 'words="$*"; while [ "$1" != --output-file ]; do shift; done; '
    write = r"""printf -- '# $words\n%s\n' 'mindspore==2.8.0 --hash=sha256:0' >"$2"; echo "$words" >asked"""
    done = renew(checkout, find + write, "--upgrade")
    assert done.returncode == 0, done.stderr
    assert "1 packages" in done.stdout
    asked = (checkout / "asked").read_text()
    assert {"--generate-hashes", "--universal", "--upgrade", "requirements.txt"} <= set(asked.split())
    content = (checkout / "requirements.lock").read_text()
    assert content.endswith("mindspore==2.8.0 --hash=sha256:0\n") and str(checkout) not in content


@pytest.mark.parametrize("uv", ["exit 1", "echo partial >requirements.txt.part; exit 3"])
def test_a_lock_that_cannot_be_renewed_stays(checkout, uv):
    before = (checkout / "requirements.lock").read_bytes()
    done = renew(checkout, uv)
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["error: uv could not resolve requirements.txt; requirements.lock is as it was"]
    assert (checkout / "requirements.lock").read_bytes() == before
    assert renew(checkout, "", "--all").returncode == 2
