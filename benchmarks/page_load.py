"""The page of infer.py --serve under load: python -m benchmarks.page_load [--uploads 50] [--json OUT]

    [--config_path CFG --ckpt_file CKPT]     a detector of your own (default: a small one with random weights)

Starts the page on this machine's loopback address, and loads it in turn with uploads at once, large pictures, idle
connections, and clients that send or read too slowly, each time asking for the page itself ten times a second. Prints
what was answered, how long the page took, and the server's memory; then stops it with SIGTERM while uploads run. Exits
with status 1 where an answer fails to come, or another than 200 or 503.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from benchmarks.common import print_table, write_json
from src.runtime.errors import UserError, run_command
from src.runtime.newer import zip_equal

ROOT = Path(__file__).resolve().parent.parent
TINY = {
    "img_width": 192,
    "img_height": 128,
    "backbone.width_multiplier": 0.25,
}
PATIENCE = 180.0  # seconds for an answer to come
EVERY = 0.1  # seconds between requests for the page
BOUNDARY = "a-part-of-the-form"


def main() -> int:
    parser = argparse.ArgumentParser(description="The page of infer.py --serve under load.")
    parser.add_argument("--config_path", help="config of a detector of your own")
    parser.add_argument("--ckpt_file", help="its checkpoint")
    parser.add_argument("--uploads", type=int, default=50, help="at once (default: %(default)s)")
    parser.add_argument("--large", type=int, default=14, help="pictures of 49 million pixels (default: %(default)s)")
    parser.add_argument("--idle", type=int, default=120, help="idle connections (default: %(default)s)")
    parser.add_argument("--slow", type=int, default=40, help="slow clients (default: %(default)s)")
    parser.add_argument("--json", help="file to write the table to")
    a = parser.parse_args()
    if bool(a.config_path) != bool(a.ckpt_file):
        raise UserError("--config_path and --ckpt_file: give both or neither")
    small, large = picture(640, 480), picture(7000, 7000)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        words = ["--config_path", a.config_path, "--ckpt_file", a.ckpt_file] if a.ckpt_file else tiny(Path(folder))
        with Page(words) as page:
            token = page.token(small)

            def uploads(content: bytes, count: int) -> Callable[[], list[int]]:
                return lambda: at_once(count, lambda: page.upload(content))

            quiet = [], uploads(small, 1)
            idle = [page.idle] * a.idle
            slow = [(page.slow_head, page.slow_body, lambda: page.slow_reader(token))[i % 3] for i in range(a.slow)]
            for name, others, load in (
                ("quiet, 1 upload", *quiet),
                (f"{a.uploads} uploads at once", [], uploads(small, a.uploads)),
                (f"{a.large} of 49 million pixels at once", [], uploads(large, a.large)),
                (f"{a.idle} idle connections, 1 upload", idle, uploads(small, 1)),
                (f"{a.slow} slow clients, 1 upload", slow, uploads(small, 1)),
                (f"{a.uploads} uploads, {a.idle} idle, {a.slow} slow", idle + slow, uploads(small, a.uploads)),
                ("600 idle connections, 1 upload", [page.idle] * 600, uploads(small, 1)),
            ):
                rows.append([name, *page.measure(others, load)])
            seconds, status, answers = page.stop(large)
    columns = ["load", "200", "503", "other", "GET / median ms", "worst ms", "GET / failed", "peak MiB"]
    print_table("The page under load", columns, rows)
    print(f"\nSIGTERM with uploads running: status {status} after {seconds:.1f} s; they were answered {answers}")
    write_json(
        a.json,
        {
            "load": [dict(zip_equal(columns, row)) for row in rows],
            "stop": {"seconds": seconds, "status": status, "answers": answers},
        },
    )
    return int(any(row[3] or row[6] for row in rows) or status != 143)


def tiny(folder: Path) -> list[str]:
    """Command-line words of a small detector with random weights that detects much."""
    code = f"""if True:
        import numpy as np
        from src.config import load_config
        from src.models.build import build_detector
        from src.checkpoints.files import save_checkpoint
        found = build_detector(load_config("configs/shapes.yaml", {TINY!r})).get_parameters()
        weights = {{p.name: p.asnumpy() for p in found}}
        logits = weights["bbox_head.cls.weight"]
        weights["bbox_head.cls.weight"] = logits / np.abs(logits).max() * 1.5
        save_checkpoint(weights, {str(folder / "tiny.ckpt")!r})
    """
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    words = ["--config_path", "configs/shapes.yaml", "--ckpt_file", str(folder / "tiny.ckpt")]
    return words + [f"--{key}={value}" for key, value in TINY.items()]


def picture(width: int, height: int) -> bytes:
    """A JPEG of smooth colours."""
    small = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    image = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(".jpg", image)[1].tobytes()


def at_once(count: int, ask: Callable[[], int]) -> list[int]:
    """What `count` calls return that begin at one moment."""
    start = threading.Barrier(count)

    def one() -> int:
        start.wait()
        return ask()

    with ThreadPoolExecutor(count) as pool:
        return [f.result() for f in [pool.submit(one) for _ in range(count)]]


class Page:
    """infer.py --serve in a process of its own; requests return the status, 0 where no answer came."""

    def __init__(self, words: list[str]):
        self.words = [sys.executable, "infer.py", *words, "--serve", "--port", "0"]

    def __enter__(self) -> Page:
        self.process = subprocess.Popen(self.words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for line in self.process.stdout:
            if found := re.match(r"serving at http://127\.0\.0\.1:(\d+)", line):
                self.port = int(found[1])
                return self
        raise UserError(f"the page didn't start: {' '.join(self.words)}")

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(
                method, path, body, {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"} if body else {}
            )
            reply = connection.getresponse()
            return reply.status, reply.read()
        except OSError:
            return 0, b""
        finally:
            connection.close()

    def upload(self, content: bytes) -> int:
        return self.ask("POST", "/detect", form(content))[0]

    def token(self, content: bytes) -> str:
        """Of a picture that is kept."""
        return re.search(rb'"id":"([^"]+)"', self.ask("POST", "/detect", form(content))[1])[1].decode()

    def idle(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port))

    def slow_head(self) -> socket.socket:
        """Sends a byte a second from now on, as the next one; until the server has enough of it."""
        return drip(self.idle(), b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: " + b"a" * 1000)

    def slow_body(self) -> socket.socket:
        data = form(b"a" * 10_000)
        head = "POST /detect HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary="
        client = self.idle()
        client.sendall(f"{head}{BOUNDARY}\r\nContent-Length: {len(data)}\r\n\r\n".encode())
        return drip(client, data)

    def slow_reader(self, token: str) -> socket.socket:
        """Asks for a picture many times over, and reads nothing."""
        client = self.idle()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(f"GET /picture/{token} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() * 20)
        return client

    def measure(self, others: list[Callable[[], socket.socket]], load: Callable[[], list[int]]) -> list:
        """A row of the table: what `load` was answered, and the page, while the `others` are there."""
        with contextlib.suppress(OSError):
            Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")  # VmHWM begins anew
        clients = [open_one() for open_one in others]
        time.sleep(1)
        with self.watched() as (times, failed):
            answers = Counter(load())
            time.sleep(1)
        for client in clients:
            client.close()
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        peak = int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024
        rest = sum(count for status, count in answers.items() if status not in (200, 503))
        return [answers[200], answers[503], rest, statistics.median(times), max(times), len(failed), peak]

    @contextlib.contextmanager
    def watched(self) -> Iterator[tuple[list[float], list[int]]]:
        """Milliseconds that the page took each time while the block runs; and the statuses that weren't 200."""
        over, times, failed = threading.Event(), [], []

        def ask() -> None:
            while not over.is_set():
                start = time.perf_counter()
                status = self.ask("GET", "/")[0]
                times.append((time.perf_counter() - start) * 1e3)
                failed.extend([status] * (status != 200))
                over.wait(EVERY)

        watcher = threading.Thread(target=ask)
        watcher.start()
        try:
            yield times, failed
        finally:
            over.set()
            watcher.join()

    def stop(self, content: bytes) -> tuple[float, int, dict[int, int]]:
        """Seconds and status of its end by SIGTERM, with uploads running, and how many had which answer."""
        with ThreadPoolExecutor(8) as pool:
            running = [pool.submit(self.upload, content) for _ in range(8)]
            time.sleep(2)
            start = time.perf_counter()
            self.process.send_signal(signal.SIGTERM)
            status = self.process.wait(PATIENCE)
            seconds = time.perf_counter() - start
            return seconds, status, dict(Counter(f.result() for f in running))


def form(content: bytes) -> bytes:
    """The page's form with an image."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="load.jpg"\r\n\r\n'
    return head.encode() + content + f"\r\n--{BOUNDARY}--\r\n".encode()


def drip(client: socket.socket, data: bytes) -> socket.socket:
    """Sends `data` byte by byte, one a second, in a thread of its own, until the connection ends."""

    def send() -> None:
        with contextlib.suppress(OSError):
            for byte in data:
                client.send(bytes([byte]))
                time.sleep(1)

    threading.Thread(target=send, daemon=True).start()
    return client


if __name__ == "__main__":
    os.chdir(ROOT)
    run_command(main)
