"""The container's start, and what the image is made of."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folders(tmp_path):
    """Data, models, and an empty /dev."""
    for name in ("my data", "models", "dev"):
        (tmp_path / name).mkdir()
    return tmp_path


def start(folders, *arguments, **environment):
    env = os.environ | {"DRY_RUN": "1", "DEV_ROOT": str(folders / "dev")} | environment
    command = ["bash", str(ROOT / "scripts/docker_start.sh"), *arguments]
    return subprocess.run(
        command, cwd=folders, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60, check=False
    )


def test_folders_keep_their_names(folders):
    done = start(folders, "rcnn:cpu", "my data", "models")
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()
    command = shlex.split(line)
    assert command[:2] == ["docker", "run"]
    data, models = folders / "my data", folders / "models"
    end = ["--volume", f"{data}:{data}", "--volume", f"{models}:{models}", "rcnn:cpu", "/bin/bash"]
    assert command[-len(end) :] == end
    assert "--tty" not in command  # standard input isn't a terminal
    assert not any(word.startswith(("--device", "--gpus")) for word in command)


def test_the_hosts_devices_come_along(folders):
    for name in ("davinci0", "davinci7", "davinci_manager", "nvidiactl"):
        (folders / "dev" / name).touch()
    command = shlex.split(start(folders, "rcnn:ascend", "my data", "models").stdout)
    devices = [word.rpartition("/")[2] for word in command if word.startswith("--device=")]
    assert devices == ["davinci0", "davinci7", "davinci_manager", "devmm_svm", "hisi_hdc"]
    for name in ("davinci0", "davinci7", "davinci_manager"):
        (folders / "dev" / name).unlink()
    command = shlex.split(start(folders, "rcnn:gpu", "my data", "models", DOCKER="podman").stdout)
    assert command[0] == "podman"
    assert command[command.index("--gpus") + 1] == "all"


@pytest.mark.parametrize("arguments", [[], ["image"], ["image", "models"], ["image", "models", "models", "more"]])
def test_wrong_number_of_arguments(folders, arguments):
    done = start(folders, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "usage: bash scripts/docker_start.sh [IMAGE] [DATA_DIR] [MODEL_DIR]" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["image", "nowhere", "models"], "DATA_DIR: no such folder: nowhere"),
        (["image", "models", "nowhere"], "MODEL_DIR: no such folder: nowhere"),
        (["", "models", "models"], "IMAGE"),
        (["--privileged", "models", "models"], "IMAGE"),
    ],
)
def test_what_isnt_there_is_named(folders, arguments, named):
    done = start(folders, *arguments)
    assert done.returncode == 2
    assert named in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_docker_runs_and_its_status_comes_back(folders):
    docker = folders / "docker"
    docker.write_text('#!/bin/bash\necho "ran $*"\nexit 5\n')
    docker.chmod(0o755)
    done = start(folders, "image", "models", "models", DRY_RUN="0", DOCKER=str(docker))
    assert done.returncode == 5
    assert "ran run --rm" in done.stdout
    done = start(folders, "image", "models", "models", DRY_RUN="0", DOCKER="no-such-docker")
    assert done.returncode == 2
    assert "no-such-docker" in done.stderr


def test_the_image_copies_what_there_is():
    """What the Dockerfile copies by name and the steps that it runs are in the checkout."""
    text = (ROOT / "Dockerfile").read_text()
    named = [w for line in re.findall(r"^COPY (.*)$", text, re.M) for w in line.split()[:-1] if w != "."]
    scripts = re.findall(r"bash (scripts/\S+)", text)
    assert named
    assert scripts
    for path in [*named, *scripts]:
        assert (ROOT / path).is_file()
    assert re.search(r"^ARG FROM_IMAGE_NAME=\S+\nFROM \$\{FROM_IMAGE_NAME\}$", text, re.M)
