"""Rank tables of Ascend servers for HCCL: makes and checks them. Needs no package.

    python scripts/hccl_tools.py [--device_num "[0,8)"] [--server_ip IP] [--visible_devices 0,1,2,3,4,5,6,7]
    python scripts/hccl_tools.py --servers IP1,IP2 --device_ips IP1:A,B,... --device_ips IP2:C,D,... [--device_num ...]
    python scripts/hccl_tools.py --merge TABLE1.json TABLE2.json [--output TABLE.json]
    python scripts/hccl_tools.py --check TABLE.json
    python scripts/hccl_tools.py --list TABLE.json [--server 0]     # "rank device ranks" a line, of one server

The format is version 1.0 of MindSpore's tutorial on starting by rank table
(https://www.mindspore.cn/tutorials/en/r2.7.2/parallel/rank_table.html); options and file names are those of the model
zoo's tool (https://gitee.com/mindspore/models/tree/r2.0/utils/hccl_tools).
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["RankTableError", "check_table", "make_table", "merge_tables", "parse_device_range", "read_table"]

DEVICES = 8  # of a server


class RankTableError(ValueError):
    """A rank table, or the wish for one, that can't be used; the message names the file, the entry and the remedy."""


def parse_device_range(text: str) -> list[int]:
    """Device numbers of "[a,b)": a to b - 1. Raises RankTableError.

    Ascend 910 servers link their devices in two groups, 0-3 and 4-7: a range lies in one of them or takes all 8.
    """
    match = re.fullmatch(r"\[\s*(\d+)\s*,\s*(\d+)\s*\)", text.strip())
    if not match:
        raise RankTableError(f"--device_num: expected a range as [0,8), got {text!r}")
    first, end = int(match[1]), int(match[2])
    if end > DEVICES or first >= end:
        raise RankTableError(f"--device_num: {text} is no range of devices 0 to {DEVICES - 1}")
    if first < DEVICES // 2 < end and end - first != DEVICES:
        raise RankTableError(f"--device_num: {text} crosses the groups [0,4) and [4,8); only [0,8) may")
    return list(range(first, end))


def make_table(servers: list[tuple[str, list[tuple[int, str]]]]) -> dict[str, Any]:
    """The rank table of `servers`: (address, [(device id, device address), ...]), ranks in that order."""
    rank, listed = 0, []
    for server, devices in servers:
        entries = []
        for device, address in devices:
            entries.append({"device_id": str(device), "device_ip": address, "rank_id": str(rank)})
            rank += 1
        listed.append({"server_id": server, "device": entries, "host_nic_ip": "reserve"})
    return {"version": "1.0", "server_count": str(len(listed)), "server_list": listed, "status": "completed"}


def merge_tables(tables: list[dict[str, Any]]) -> dict[str, Any]:
    """One table of several servers' tables, in the order given; ranks are numbered anew."""
    return make_table(
        [
            (server["server_id"], [(int(d["device_id"]), d["device_ip"]) for d in by_rank(server)])
            for table in tables
            for server in table["server_list"]
        ]
    )


def by_rank(server: dict[str, Any]) -> list[dict[str, str]]:
    """A server's devices by rising rank."""
    return sorted(server["device"], key=lambda d: int(d["rank_id"]))


def read_table(path: str | Path) -> dict[str, Any]:
    """Reads a rank table and checks it. Raises RankTableError."""
    if Path(path).exists() and not Path(path).is_file():
        raise RankTableError(f"{path}: not a file")
    try:
        table = json.loads(Path(path).read_bytes())
    except OSError as e:
        raise RankTableError(f"{path}: can't read the rank table: {e.strerror}") from None
    except json.JSONDecodeError as e:
        raise RankTableError(f"{path}, line {e.lineno}: not valid JSON ({e.msg})") from None
    except (ValueError, RecursionError):
        raise RankTableError(f"{path}: not valid JSON") from None
    check_table(table, str(path))
    return table


def check_table(table: Any, where: str) -> None:
    """Raises RankTableError, naming the file `where` and the first entry that is wrong."""

    def demand(ok: bool, message: str) -> None:
        if not ok:
            raise RankTableError(f"{where}: {message}")

    demand(isinstance(table, dict), "not a rank table: expected a mapping")
    for name in ("version", "server_count", "server_list", "status"):
        demand(name in table, f"no {name!r}; make the table with scripts/hccl_tools.py")
    demand(
        table["version"] == "1.0",
        f"version is {table['version']!r}, not '1.0'; msrun needs no rank table: name a number of devices, and leave"
        " RANK_TABLE_FILE unset",
    )
    demand(table["status"] == "completed", f"status is {table['status']!r}, not 'completed'")
    servers = table["server_list"]
    demand(isinstance(servers, list) and len(servers) > 0, "server_list: expected a list of servers")
    count = table["server_count"]
    demand(as_number(count) is not None, f"server_count: expected a number as text ('1'), got {count!r}")
    demand(as_number(count) == len(servers), f"server_count is {count!r}, but {len(servers)} are listed")
    names: set[str] = set()
    addresses: dict[str, str] = {}
    ranks: dict[int, str] = {}
    for i, server in enumerate(servers):
        demand(isinstance(server, dict), f"server_list[{i}]: expected a mapping")
        name = server.get("server_id")
        demand(isinstance(name, str) and name != "", f"server_list[{i}]: no server_id")
        demand(name not in names, f"server {name} is listed twice")
        names.add(name)
        check_server(server, f"server {name}", demand, ranks, addresses)
    for rank in range(len(ranks)):
        demand(rank in ranks, f"no rank {rank}: {len(ranks)} devices need the ranks 0 to {len(ranks) - 1}")


def check_server(server: dict, name: str, demand: Any, ranks: dict[int, str], addresses: dict[str, str]) -> None:
    """Checks one server's devices, and adds its ranks and addresses to those seen, which no other may have."""
    devices = server.get("device")
    demand(isinstance(devices, list) and len(devices) > 0, f"{name}: no list of devices ('device')")
    seen: set[int] = set()
    for i, entry in enumerate(devices):
        demand(isinstance(entry, dict), f"{name}: device[{i}]: expected a mapping")
        device, rank, address = (
            as_number(entry.get("device_id")),
            as_number(entry.get("rank_id")),
            entry.get("device_ip"),
        )
        demand(
            device is not None and device < DEVICES,
            f"{name}: unknown device {entry.get('device_id')!r}; devices are '0' to '{DEVICES - 1}'",
        )
        demand(device not in seen, f"{name}: device {device} is listed twice")
        seen.add(device)
        what = f"{name}, device {device}"
        demand(bool(address), f"{what}: no device_ip; see address_{device} in /etc/hccn.conf")
        demand(is_address(address), f"{what}: device_ip {address!r} isn't an address")
        demand(address not in addresses, f"{what}: device_ip {address} is that of {addresses.get(address)} too")
        addresses[address] = what
        demand(rank is not None, f"{what}: rank_id {entry.get('rank_id')!r} isn't a rank")
        demand(rank not in ranks, f"{what}: rank {rank} is that of {ranks.get(rank)} too")
        ranks[rank] = what


def as_number(value: Any) -> int | None:
    """The table writes numbers as text; None for anything else."""
    return int(value) if isinstance(value, str) and re.fullmatch(r"\d{1,6}", value) else None


def is_address(value: Any) -> bool:
    """Whether `value` is an IPv4 or IPv6 address."""
    try:
        return isinstance(value, str) and bool(ipaddress.ip_address(value))
    except ValueError:
        return False


def local_device_ips(conf: Path) -> dict[int, str]:
    """Device addresses of this server by device number: hccn_tool's, or /etc/hccn.conf's. Raises RankTableError."""
    found = {}
    for device in range(DEVICES):
        try:
            told = subprocess.run(
                ["hccn_tool", "-i", str(device), "-ip", "-g"], capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            break
        if match := re.search(r"ipaddr:\s*(\S+)", told.stdout):
            found[device] = match[1]
    if found:
        return found
    try:
        text = conf.read_text()
    except (OSError, UnicodeDecodeError) as e:
        raise RankTableError(
            f"{conf}: can't read the devices' addresses: {getattr(e, 'strerror', None) or e}; "
            "run this on the Ascend server, or give them: --device_ips A,B,..."
        ) from None
    return {int(m[1]): m[2] for m in re.finditer(r"^\s*address_(\d+)\s*=\s*(\S+)", text, re.M)}


def given_device_ips(texts: list[str], servers: list[str], devices: list[int]) -> dict[str, dict[int, str]]:
    """--device_ips "SERVER:A,B,..." or, for one server, "A,B,...": addresses by server and device number."""
    out = {}
    for text in texts:
        server, colon, listed = text.rpartition(":")
        if not colon:
            server, listed = servers[0], text
            if len(servers) > 1:
                raise RankTableError(f"--device_ips: {text!r} names no server; write SERVER:A,B,...")
        if server not in servers:
            raise RankTableError(f"--device_ips: {server} isn't among the servers {', '.join(servers)}")
        addresses = [a.strip() for a in listed.split(",")]
        if len(addresses) != len(devices):
            raise RankTableError(f"--device_ips: {len(addresses)} addresses for the {len(devices)} devices of {server}")
        out[server] = dict(zip(devices, addresses))
    return out


def host_ip() -> str:
    """This server's address. Raises RankTableError."""
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        raise RankTableError("this server's address can't be told; give it: --server_ip IP") from None


def build(arguments: argparse.Namespace) -> dict[str, Any]:
    """The table that the command line asks for. Raises RankTableError."""
    if arguments.servers and arguments.server_ip:
        raise RankTableError("--server_ip and --servers: give one of them")
    servers = [s.strip() for s in arguments.servers.split(",")] if arguments.servers else []
    servers = servers or [arguments.server_ip or host_ip()]
    logical = parse_device_range(arguments.device_num)
    visible = arguments.visible_devices.split(",")
    if not all(re.fullmatch(rf"\s*[0-{DEVICES - 1}]\s*", v) for v in visible):
        raise RankTableError(
            f"--visible_devices: expected devices 0 to {DEVICES - 1}, got {arguments.visible_devices!r}"
        )
    if logical[-1] >= len(visible):
        raise RankTableError(f"--device_num: {arguments.device_num} of {len(visible)} visible devices")
    devices = [int(visible[i]) for i in logical]
    ips = given_device_ips(arguments.device_ips, servers, devices)
    lacking = [s for s in servers if s not in ips]
    if len(servers) > 1 and lacking:
        raise RankTableError(f"--device_ips: none for {lacking[0]}; or make a table on each server and --merge them")
    for server in lacking:
        ips[server] = local_device_ips(arguments.hccn_conf)
    for server in servers:
        for device in devices:
            if device not in ips[server]:
                raise RankTableError(f"{arguments.hccn_conf}: no address_{device}; see 'hccn_tool -i {device} -ip -g'")
    return make_table([(s, [(d, ips[s][d]) for d in devices]) for s in servers])


def table_name(table: dict[str, Any]) -> str:
    """The model zoo's file name: hccl_{devices}p_{which}_{server}.json, or hccl_{servers}s_{ranks}p.json of several."""
    servers = table["server_list"]
    if len(servers) > 1:
        return f"hccl_{len(servers)}s_{sum(len(s['device']) for s in servers)}p.json"
    which = "".join(d["device_id"] for d in by_rank(servers[0]))
    return f"hccl_{len(which)}p_{which}_{servers[0]['server_id']}.json"


def save(table: dict[str, Any], path: Path) -> None:
    """Writes the table beside, then renames. Raises RankTableError."""
    beside = path.with_name(path.name + ".writing")
    try:
        beside.write_text(json.dumps(table, indent=4) + "\n")
        os.replace(beside, path)
    except OSError as e:
        raise RankTableError(f"{path}: can't write the rank table: {e.strerror}") from None


def run(arguments: argparse.Namespace) -> None:
    """Does what the command line asks for. Raises RankTableError."""
    if arguments.check:
        table = read_table(arguments.check)
        ranks = sum(len(s["device"]) for s in table["server_list"])
        print(f"{arguments.check}: {len(table['server_list'])} servers, {ranks} ranks")
        return
    if arguments.list:
        servers = read_table(arguments.list)["server_list"]
        if not 0 <= arguments.server < len(servers):
            raise RankTableError(f"{arguments.list}: no server {arguments.server}; it has 0 to {len(servers) - 1}")
        ranks = sum(len(s["device"]) for s in servers)
        for device in by_rank(servers[arguments.server]):
            print(device["rank_id"], device["device_id"], ranks)
        return
    table = merge_tables([read_table(p) for p in arguments.merge]) if arguments.merge else build(arguments)
    path = Path(arguments.output or table_name(table))
    check_table(table, str(path))
    save(table, path)
    print(path.resolve())


def main() -> int:
    parser = argparse.ArgumentParser(description="Make or check a rank table for HCCL.", allow_abbrev=False)
    parser.add_argument("--device_num", default="[0,8)", help="devices of each server, as [0,8) (default) or [0,1)")
    parser.add_argument("--visible_devices", default="0,1,2,3,4,5,6,7", help="devices that --device_num counts through")
    parser.add_argument("--server_ip", default="", help="this server's address (default: by its host name)")
    parser.add_argument("--servers", default="", help="addresses of several servers, IP1,IP2,...: ranks in that order")
    parser.add_argument(
        "--device_ips",
        action="append",
        default=[],
        help="SERVER:A,B,... addresses of its devices; once for each server",
    )
    parser.add_argument("--hccn_conf", type=Path, default=Path("/etc/hccn.conf"), help="default: %(default)s")
    parser.add_argument("--output", help="file to write (default: hccl_..., here)")
    parser.add_argument("--merge", nargs="+", metavar="TABLE", help="one table of these, in that order")
    parser.add_argument("--check", metavar="TABLE", help="check this table")
    parser.add_argument(
        "--list", metavar="TABLE", help="print rank, device and number of ranks of one server's devices"
    )
    parser.add_argument("--server", type=int, default=0, help="which server --list prints, counted from 0")
    try:
        run(parser.parse_args())
    except RankTableError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
