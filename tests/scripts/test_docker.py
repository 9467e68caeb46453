"""The container's start, and what the image is made of."""

import csv
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
    mounts = [f"type=bind,source={data},target={data},readonly", f"type=bind,source={models},target={models}"]
    end = ["--mount", mounts[0], "--mount", mounts[1], "rcnn:cpu", "/bin/bash"]
    assert command[-len(end) :] == end
    assert "--tty" not in command  # standard input isn't a terminal
    assert not any(word.startswith(("--device", "--gpus")) for word in command)


def test_the_container_gets_no_more_than_it_needs(folders):
    command = shlex.split(start(folders, "rcnn:cpu", "my data", "models").stdout)
    assert command[command.index("--user") + 1] == f"{os.getuid()}:{os.getgid()}"
    assert {"--cap-drop=ALL", "--security-opt=no-new-privileges"} <= set(command)
    # nothing of the host's but the two folders; --volume would make one that went meanwhile, as root's
    assert command.count("--mount") == 2
    assert not {"--privileged", "-v", "--volume", "--network=host", "--ipc=host", "--pid=host"} & set(command)
    command = shlex.split(start(folders, "rcnn:cpu", "my data", "models", NETWORK="host", SHM_SIZE="1g").stdout)
    assert {"--network=host", "--shm-size=1g"} <= set(command)


def test_one_folder_for_both_is_mounted_once(folders):
    command = shlex.split(start(folders, "rcnn:cpu", "models", "models/").stdout)
    assert [command[i + 1] for i, word in enumerate(command) if word == "--mount"] == [
        f"type=bind,source={folders / 'models'},target={folders / 'models'}"
    ]


@pytest.mark.parametrize("name", ["a,readonly", 'qu"ote', "$(touch x)", "it's", "*"])
def test_folders_of_any_name(folders, name):
    (folders / name).mkdir()
    done = start(folders, "rcnn:cpu", name, "models")
    assert done.returncode == 0, done.stderr
    command = shlex.split(done.stdout)
    # as docker reads it
    [fields] = csv.reader([command[command.index("--mount") + 1]])
    assert fields == ["type=bind", f"source={folders / name}", f"target={folders / name}", "readonly"]
    assert not (folders / "x").exists()


def test_a_folder_that_no_option_can_name(folders):
    (folders / "a\nb").mkdir()
    done = start(folders, "rcnn:cpu", "a\nb", "models")
    assert done.returncode == 2 and "line break" in done.stderr and done.stdout == ""


def test_the_hosts_devices_come_along(folders):
    for name in ("davinci0", "davinci7", "davinci_manager", "nvidiactl"):
        (folders / "dev" / name).touch()
    command = shlex.split(start(folders, "rcnn:ascend", "my data", "models").stdout)
    devices = [word.rpartition("/")[2] for word in command if word.startswith("--device=")]
    assert devices == ["davinci0", "davinci7", "davinci_manager", "devmm_svm", "hisi_hdc"]
    group = (folders / "dev/davinci0").stat().st_gid
    assert [word for word in command if word.startswith("--group-add")] == [f"--group-add={group}"]
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
    # one image, whenever it is built
    assert re.search(r"^ARG FROM_IMAGE_NAME=\S+:\d+\.\d+\.\d+-\S+\nFROM \$\{FROM_IMAGE_NAME\}$", text, re.M)


def test_the_image_runs_as_no_root():
    users = re.findall(r"^USER (\S+)$", (ROOT / "Dockerfile").read_text(), re.M)
    assert users and users[-1] not in ("root", "0")


def ignored(path):
    """Whether .dockerignore leaves a path of the checkout out; ** is any number of folders, a line with ! takes what it
    names back."""
    out = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.rstrip("/").removeprefix("!")
        if not pattern or pattern.startswith("#"):
            continue
        parts = [re.escape(p).replace(r"\*", "[^/]*") for p in pattern.split("/")]
        expression = "/".join(parts).replace("[^/]*[^/]*/", "(?:.*/)?")
        if re.match(f"{expression}(?:/|$)", path):
            out = not line.startswith("!")
    return out


@pytest.mark.parametrize(
    "path",
    [".git/config", ".venv/bin/python", "build/x.so", "ascend310_infer/build-sanitize/x", "train_outputs/a/b.log"]
    + ["a/__pycache__/b.pyc", "models/x.ckpt", "x.mindir", "data/a.jpg", "mindrecord/a", "deep/mlruns/1/meta.yaml"]
    + [".pytest_cache/x", "demo_outputs/x", ".env", "keys/host.pem", "ascend310_infer/third_party/x", "rank_0/x"],
)
def test_what_isnt_code_stays_out_of_the_image(path):
    assert ignored(path)


def test_all_code_goes_into_the_image():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    left = [
        p for p in listed.stdout.splitlines() if ignored(p) and not p.startswith((".git", ".ci", ".docker", "Docker"))
    ]
    assert left == []
