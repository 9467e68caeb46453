"""Rank tables in the documented format, and their faults."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "scripts/hccl_tools.py"


def run(*arguments, cwd):
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


def refused(done, *parts):
    assert done.returncode == 2, done.stdout
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for part in parts:
        assert str(part) in done.stderr


def device_ip(server, device):
    return f"192.{device + 1}.{server}.6"


def table(servers, devices):
    """The format written out: https://www.mindspore.cn/tutorials/en/r2.7.2/parallel/rank_table.html"""
    return {
        "version": "1.0",
        "server_count": str(servers),
        "server_list": [
            {
                "server_id": f"10.155.111.{140 + s}",
                "device": [
                    {"device_id": str(d), "device_ip": device_ip(s, d), "rank_id": str(s * devices + d)}
                    for d in range(devices)
                ],
                "host_nic_ip": "reserve",
            }
            for s in range(servers)
        ],
        "status": "completed",
    }


@pytest.mark.parametrize(
    ("servers", "devices", "name"),
    [
        (1, 1, "hccl_1p_0_10.155.111.140.json"),
        (1, 8, "hccl_8p_01234567_10.155.111.140.json"),
        (2, 8, "hccl_2s_16p.json"),
        (3, 4, "hccl_3s_12p.json"),
    ],
)
def test_tables_have_the_documented_format(tmp_path, servers, devices, name):
    addresses = [f"10.155.111.{140 + s}" for s in range(servers)]
    arguments = ["--device_num", f"[0,{devices})", "--servers", ",".join(addresses)]
    for s, address in enumerate(addresses):
        arguments += ["--device_ips", f"{address}:{','.join(device_ip(s, d) for d in range(devices))}"]
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / name)
    assert json.loads((tmp_path / name).read_text()) == table(servers, devices)
    done = run("--check", name, cwd=tmp_path)
    assert done.returncode == 0
    assert f"{servers} servers, {servers * devices} ranks" in done.stdout


def test_addresses_from_the_servers_own_file(tmp_path):
    (tmp_path / "hccn.conf").write_text(
        "".join(f"address_{d}={device_ip(0, d)}\nnetmask_{d}=255.0.0.0\n" for d in range(8))
    )
    done = run("--server_ip", "10.155.111.140", "--hccn_conf", "hccn.conf", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(Path(done.stdout.strip()).read_text()) == table(1, 8)
    done = run("--server_ip", "10.0.0.1", "--hccn_conf", "nowhere.conf", cwd=tmp_path)
    refused(done, "nowhere.conf", "--device_ips")
    (tmp_path / "hccn.conf").write_text("address_0=192.1.0.6\n")
    refused(run("--server_ip", "10.0.0.1", "--hccn_conf", "hccn.conf", cwd=tmp_path), "address_1")


def test_visible_devices_are_those_that_the_range_counts_through(tmp_path):
    arguments = ["--server_ip", "10.0.0.1", "--device_num", "[0,2)", "--visible_devices", "4,5,6,7"]
    done = run(*arguments, "--device_ips", "192.5.0.6,192.6.0.6", "--output", "t.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    devices = json.loads((tmp_path / "t.json").read_text())["server_list"][0]["device"]
    assert [(d["device_id"], d["rank_id"]) for d in devices] == [("4", "0"), ("5", "1")]


@pytest.mark.parametrize("wrong", ["[3,6)", "[0,9)", "[4,4)", "[5,2)", "8", "[0,8]", "[-1,4)", ""])
def test_device_ranges_that_are_none(tmp_path, wrong):
    done = run("--server_ip", "10.0.0.1", f"--device_num={wrong}", "--device_ips", "192.1.0.6", cwd=tmp_path)
    refused(done, "--device_num", wrong)
    assert list(tmp_path.iterdir()) == []


def test_merging_numbers_the_ranks_anew(tmp_path):
    whole = table(2, 8)
    for s in range(2):
        one = table(1, 8)
        one["server_list"] = [copy.deepcopy(whole["server_list"][s])]
        for i, device in enumerate(one["server_list"][0]["device"]):
            device["rank_id"] = str(i)
        (tmp_path / f"server{s}.json").write_text(json.dumps(one))
    done = run("--merge", "server0.json", "server1.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "hccl_2s_16p.json").read_text()) == whole
    refused(run("--merge", "server0.json", "server0.json", cwd=tmp_path), "10.155.111.140", "twice")


def test_list_names_one_servers_devices(tmp_path):
    (tmp_path / "t.json").write_text(json.dumps(table(2, 2)))
    assert run("--list", "t.json", "--server", 1, cwd=tmp_path).stdout.splitlines() == ["2 0 4", "3 1 4"]
    refused(run("--list", "t.json", "--server", 2, cwd=tmp_path), "t.json", "no server 2")


def spoil(change):
    spoiled = table(2, 2)
    change(spoiled, spoiled["server_list"][1]["device"])
    return spoiled


FAULTS = {
    "unknown device": (lambda t, d: d[0].update(device_id="8"), ["10.155.111.141", "unknown device '8'"]),
    "device without number": (lambda t, d: d[0].update(device_id="first"), ["unknown device 'first'"]),
    "no device": (lambda t, d: d[0].pop("device_id"), ["unknown device None"]),
    "duplicate device": (lambda t, d: d[1].update(device_id="0"), ["10.155.111.141", "device 0 is listed twice"]),
    "duplicate rank": (lambda t, d: d[1].update(rank_id="0"), ["10.155.111.141, device 1", "rank 0", "10.155.111.140"]),
    "missing rank": (lambda t, d: d[1].update(rank_id="9"), ["no rank 3"]),
    "negative rank": (lambda t, d: d[1].update(rank_id="-1"), ["rank_id '-1'"]),
    "wrong server count": (lambda t, d: t.update(server_count="3"), ["server_count", "'3'", "2 are listed"]),
    "server count as a number": (lambda t, d: t.update(server_count=2), ["server_count", "text"]),
    "no server count": (lambda t, d: t.pop("server_count"), ["server_count"]),
    "no servers": (lambda t, d: t.update(server_list=[], server_count="0"), ["server_list"]),
    "server twice": (lambda t, d: t["server_list"][1].update(server_id="10.155.111.140"), ["10.155.111.140", "twice"]),
    "server without name": (lambda t, d: t["server_list"][1].pop("server_id"), ["server_list[1]", "server_id"]),
    "server without devices": (lambda t, d: t["server_list"][1].update(device=[]), ["10.155.111.141", "devices"]),
    "missing address": (lambda t, d: d[0].pop("device_ip"), ["10.155.111.141, device 0", "no device_ip"]),
    "empty address": (lambda t, d: d[0].update(device_ip=""), ["no device_ip"]),
    "no address": (lambda t, d: d[0].update(device_ip="192.1.0"), ["192.1.0", "isn't an address"]),
    "address twice": (
        lambda t, d: d[0].update(device_ip=device_ip(0, 0)),
        [device_ip(0, 0), "10.155.111.140, device 0"],
    ),
    "other version": (lambda t, d: t.update(version="1.2"), ["version", "1.2"]),
    "not completed": (lambda t, d: t.update(status="initializing"), ["status", "initializing"]),
    "device that is text": (lambda t, d: d.__setitem__(0, "0"), ["device[0]"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named(tmp_path, fault):
    change, parts = FAULTS[fault]
    (tmp_path / "bad.json").write_text(json.dumps(spoil(change)))
    refused(run("--check", "bad.json", cwd=tmp_path), "bad.json", *parts)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"1.0"', '{"version": "1.0"}', "\xff"])
def test_files_that_are_no_tables(tmp_path, text):
    (tmp_path / "bad.json").write_text(text, encoding="latin1")
    refused(run("--check", "bad.json", cwd=tmp_path), "bad.json")


def test_files_that_cant_be_read_or_written(tmp_path):
    refused(run("--check", "none.json", cwd=tmp_path), "none.json", "No such file")
    arguments = ["--server_ip", "10.0.0.1", "--device_num", "[0,1)", "--device_ips", "192.1.0.6"]
    refused(run(*arguments, "--output", "no/where.json", cwd=tmp_path), "no/where.json")


def test_servers_need_their_devices_addresses(tmp_path):
    arguments = ["--servers", "10.0.0.1,10.0.0.2", "--device_num", "[0,2)"]
    refused(run(*arguments, "--device_ips", "10.0.0.1:1.1.1.1,1.1.1.2", cwd=tmp_path), "10.0.0.2", "--merge")
    refused(run(*arguments, "--device_ips", "10.0.0.3:1.1.1.1,1.1.1.2", cwd=tmp_path), "10.0.0.3")
    refused(run(*arguments, "--device_ips", "10.0.0.1:1.1.1.1", cwd=tmp_path), "1 addresses", "2 devices")
    refused(run(*arguments, "--device_ips", "1.1.1.1,1.1.1.2", cwd=tmp_path), "names no server")
