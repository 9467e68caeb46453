"""The page over sockets: many clients, slow ones, hostile ones, and its end. The network is a stub."""

import contextlib
import http.client
import io
import json
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.inference.page import serve
from src.runtime.errors import UserError

pytest.importorskip("flask", reason="Flask isn't installed (requirements-serve.txt): no page to test")
pytest.importorskip("waitress", reason="waitress isn't installed (requirements-serve.txt)")
serve_http = pytest.importorskip("src.inference.page.server")

ROOT = Path(__file__).parents[1]
BOUNDARY = "XXpartXX"
LARGE_PNG = ROOT / "../shared/faults/50_png_before_limit/13000x13000_rgba.png"


class Nothing:
    """Detections of nothing."""

    def __init__(self, image):
        self.height, self.width = image.shape[:2]
        self.boxes, self.scores = np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
        self.labels, self.names, self.fields = np.zeros(0, np.int32), [], {}

    def above(self, _):
        return self

    def to_entry(self):
        return {"predictions": []}


class Stub:
    """A predictor that finds nothing, once it may."""

    def __init__(self):
        self.go_on, self.images, self.together, self.most = threading.Event(), [], 0, 0
        self.go_on.set()

    def __call__(self, image):
        self.images.append(image.shape)
        self.together += 1
        self.most = max(self.most, self.together)
        self.go_on.wait(30)
        self.together -= 1
        return Nothing(image)


class Page:
    def __init__(self, stub, host="127.0.0.1", hosts=serve.LOCAL):
        listening = serve.bind(host, 0)
        self.address, self.stub = listening.getsockname()[:2], stub
        app = serve.create_app(stub, hosts)
        self.line = app.extensions["line"]
        self.server = serve.create_server(app, listening)
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()

    def connect(self, size=None):
        client = socket.socket(socket.AF_INET6 if ":" in self.address[0] else socket.AF_INET)
        if size:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
        client.settimeout(20)
        client.connect(self.address)
        return client

    def ask(self, *words):
        return ask(self.address, *words)

    def upload(self, content, name="photo.png"):
        return self.ask("POST", "/detect", form(content, name), TYPE)

    def send(self, data):
        """(status, body) of the answer to bytes, or None where the connection was closed without one."""
        with self.connect() as client:
            with contextlib.suppress(OSError):  # refused before it was sent to its end
                client.sendall(data)
            return answer(client)

    def stop(self):
        self.stub.go_on.set()
        self.server.stop()
        self.thread.join(20)
        assert not self.thread.is_alive()


def ask(address, method="GET", path="/", body=None, headers=None):
    """(status, headers, body) of an answer."""
    connection = http.client.HTTPConnection(*address, timeout=20)
    try:
        connection.request(method, path, body, headers or {})
        reply = connection.getresponse()
        return reply.status, reply.headers, reply.read()
    finally:
        connection.close()


TYPE = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def form(content, name="photo.png"):
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'
    return head.encode() + content + f"\r\n--{BOUNDARY}--\r\n".encode()


def raw(body=b"", length=None, first="POST /detect HTTP/1.1", kind=TYPE["Content-Type"], more=()):
    """An upload's bytes, as no library would send them."""
    lines = [first, "Host: localhost", f"Content-Type: {kind}", *more]
    if length != "":
        lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def answer(client):
    """(status, body) of the next answer; None where the connection was closed without one."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = client.recv(1)
        if not byte:
            return None
        head += byte
    left = int(re.search(rb"Content-Length: (\d+)", head)[1])
    body = []
    while left:
        body.append(client.recv(left))
        left -= len(body[-1])
        assert body[-1], "cut off"
    return int(head.split()[1]), b"".join(body)


def png(height=8, width=8, **options):
    return encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)), **options)


def encoded(image, kind="PNG", **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture
def start():
    pages = []

    def make(**options):
        pages.append(Page(Stub(), **options))
        return pages[-1]

    yield make
    for page in pages:
        page.stop()


@pytest.fixture
def page(start):
    return start()


@pytest.fixture(scope="module")
def lasting():
    """A page that several hostile requests are sent to, one after the other."""
    page = Page(Stub())
    yield page
    page.stop()


# ---------------------------------------------------------------------------------------------------------
# many


def test_uploads_beyond_the_line_are_refused_and_the_page_loads(page):
    page.stub.go_on.clear()
    with ThreadPoolExecutor(50) as pool:
        asked = [pool.submit(page.upload, png()) for _ in range(50)]
        until(lambda: sum(f.done() for f in asked) == 50 - serve.WAITING)
        for _ in range(10):
            assert page.ask()[0] == 200
        page.stub.go_on.set()
        answers = [f.result() for f in asked]
    assert Counter(a[0] for a in answers) == {200: serve.WAITING, 503: 50 - serve.WAITING}
    for status, headers, body in answers:
        if status == 503:
            assert "busy" in json.loads(body)["error"]
            assert int(headers["Retry-After"]) > 0
    assert page.stub.most == 1, "more than one picture at work, each with its memory and threads"
    assert page.upload(png())[0] == 200


def test_an_upload_whose_client_has_gone_is_not_predicted(page):
    page.stub.go_on.clear()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(page.upload, png())
        until(lambda: page.stub.images)
        with page.connect() as client:
            client.sendall(raw(form(png(9, 9))))
            until(lambda: page.line.taken == 2)
        until(lambda: len(page.server.server.active_channels) == 1)
        page.stub.go_on.set()
        assert first.result()[0] == 200
    until(lambda: page.line.taken == 0)
    assert page.stub.images == [(8, 8, 3)]


def test_the_page_loads_while_there_is_no_room_for_uploads_or_drawings(page, monkeypatch):
    token = json.loads(page.upload(png())[2])["id"]
    page.stub.go_on.clear()
    go_on = threading.Event()

    def slowly(kept, _score):
        go_on.wait(20)
        return kept.picture

    monkeypatch.setattr(serve, "draw", slowly)
    with ThreadPoolExecutor(30) as pool:
        uploads = [pool.submit(page.upload, png()) for _ in range(serve.WAITING)]
        until(lambda: page.line.full)
        drawings = [pool.submit(page.ask, "GET", f"/picture/{token}") for _ in range(12)]
        until(lambda: sum(f.done() for f in drawings) == 12 - serve.DRAWINGS)
        assert page.ask()[0] == 200
        go_on.set()
        assert Counter(f.result()[0] for f in drawings) == {200: serve.DRAWINGS, 503: 12 - serve.DRAWINGS}
        page.stub.go_on.set()
        assert {f.result()[0] for f in uploads} == {200}


def test_idle_and_slow_clients_keep_nobody_out(page):
    token = json.loads(page.upload(png(300, 300))[2])["id"]
    clients = [page.connect() for _ in range(120)]
    for i in range(40):
        clients.append(page.connect(size=4096))
        half = raw(form(png()), length=10_000)
        slow = half[:60], half, f"GET /picture/{token} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() * 20
        clients[-1].sendall(slow[i % 3])
    assert page.ask()[0] == 200
    assert page.upload(png())[0] == 200
    for client in clients:
        client.close()


def test_the_newest_connection_has_room_whatever_the_others_do(start, monkeypatch):
    monkeypatch.setattr(serve_http, "CONNECTIONS", 20)
    page = start()
    clients = [page.connect() for _ in range(30)]
    until(lambda: len(page.server.server.active_channels) == 20)
    assert page.ask()[0] == 200
    assert clients[0].recv(1) == b""
    clients[-1].sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert answer(clients[-1])[0] == 200
    for client in clients:
        client.close()


def test_it_may_end_while_it_is_told_to(start, monkeypatch):
    """Who tells it writes to a pipe that its end closes, after which the pipe's number may be another file's."""
    page = start()
    pull = page.server.server.pull_trigger

    def slow_pull():
        pull()
        page.thread.join(0.5)
        pull()

    monkeypatch.setattr(page.server.server, "pull_trigger", slow_pull)
    page.server.stop()
    page.thread.join(20)
    assert not page.thread.is_alive()


def test_idle_connections_make_room_before_an_upload_does(start, monkeypatch):
    monkeypatch.setattr(serve_http, "CONNECTIONS", 20)
    monkeypatch.setattr(serve_http, "FRESH", 0.0)
    page, data = start(), raw(form(png()))
    with page.connect() as uploading:
        uploading.sendall(data[:-10])
        clients = [page.connect() for _ in range(40)]
        until(lambda: len(page.server.server.active_channels) == 20)
        uploading.sendall(data[-10:])
        assert answer(uploading)[0] == 200
    for client in clients:
        client.close()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", None),
        (b"GET / HTTP/1.1\r\nX-Slow: ", None),
        (raw(form(png()), length=10_000), 408),
        (raw(b"5\r\nabc", length="", more=["Transfer-Encoding: chunked"]), 408),
    ],
)
def test_who_sends_too_slowly_is_cut_off(sent, status, start, monkeypatch):
    monkeypatch.setattr(serve_http, "IDLE", 0.2)
    monkeypatch.setattr(serve_http, "PATIENCE", 0.2)
    page = start()
    with page.connect() as client:
        client.sendall(sent)
        got = answer(client)
        assert client.recv(1) == b""
    assert (got and got[0]) == status
    if got:
        assert "too long" in json.loads(got[1])["error"]


def test_who_reads_too_slowly_is_cut_off(start, monkeypatch):
    monkeypatch.setattr(serve_http, "PATIENCE", 0.2)
    page = start()
    token = json.loads(page.upload(png(640, 640))[2])["id"]
    with page.connect(size=4096) as client:
        client.sendall(f"GET /picture/{token} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() * 50)
        until(lambda: page.server.server.active_channels)
        until(lambda: not page.server.server.active_channels)


def test_a_steady_client_may_take_its_time(start, monkeypatch):
    monkeypatch.setattr(serve_http, "IDLE", 1.0)
    monkeypatch.setattr(serve_http, "PATIENCE", 0.0)
    monkeypatch.setattr(serve_http, "RATE", 100)
    page, data = start(), raw(form(png(20, 20)))
    with page.connect() as client:
        for at in range(0, len(data), len(data) // 8):
            client.sendall(data[at : at + len(data) // 8])
            time.sleep(0.25)
        assert answer(client)[0] == 200


def test_bodies_that_are_held_are_bounded_in_sum(start, monkeypatch):
    monkeypatch.setattr(serve_http, "INCOMING", 3_000_000)
    page, content = start(), png(600, 600)
    data = raw(form(content))
    assert 1_000_000 < len(data) < 1_200_000
    clients = [page.connect() for _ in range(6)]
    for client in clients:
        client.sendall(data[:-1000])
        time.sleep(0.05)
    kept = [len(c.request.body_rcv) for c in list(page.server.server.active_channels.values()) if c.request]
    assert 2_000_000 < sum(kept) < 3_000_000
    got = []
    for client in clients:
        client.sendall(data[-1000:])
        got.append(answer(client)[0])
        client.close()
    # those who came last are told
    assert got == [200, 200, 503, 503, 503, 503]


def test_answers_that_nobody_takes_are_bounded_in_sum(start, monkeypatch, tmp_path):
    monkeypatch.setattr(serve_http, "OUTGOING", 3_000_000)
    (tmp_path / "large.html").write_text("x" * 2_000_000)
    monkeypatch.setattr(serve, "PAGE", tmp_path / "large.html")
    page = start()
    clients = [page.connect(size=4096) for _ in range(8)]
    until(lambda: len(page.server.server.active_channels) == 8)
    for client in clients:
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 10)
    until(lambda: len(page.server.server.active_channels) < 4)
    assert page.ask()[0] == 200
    for client in clients:
        client.close()


def test_nothing_is_written_to_the_disk(page, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))  # whoever opens a file there fails
    status, _, body = page.upload(png(1600, 1600))
    assert status == 200
    token = json.loads(body)["id"]
    with page.connect(size=1 << 17) as client:
        client.sendall(f"GET /picture/{token} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() * 4)
        # more than waitress keeps in memory of its own accord
        until(lambda: any(c.total_outbufs_len > 1 << 20 for c in list(page.server.server.active_channels.values())))
        for _ in range(4):
            assert answer(client)[0] == 200


# ---------------------------------------------------------------------------------------------------------
# hostile


def part(name="image", extra='; filename="a.png"', content=b"x"):
    return f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'.encode() + content + b"\r\n"


CLOSE = f"--{BOUNDARY}--\r\n".encode()
CHUNKED = {"length": "", "more": ["Transfer-Encoding: chunked"]}


def chunks(data, size=70_000):
    pieces = (data[at : at + size] for at in range(0, len(data), size))
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@pytest.mark.parametrize(
    ("request_", "status", "word"),
    [
        (lambda: raw(b"\0\xff" * 5000), 400, "not a form"),
        (lambda: raw(form(png()), kind="multipart/form-data"), 400, "not a form"),
        (lambda: raw(form(png()), kind="multipart/form-data; boundary="), 400, "not a form"),
        (lambda: raw(form(png()), kind=f"multipart/form-data; boundary={'b' * 500}"), 400, "not a form"),
        (lambda: raw(form(png()), kind="text/plain"), 400, "no image"),
        (lambda: raw(b"a&" * 1_000_000, kind="application/x-www-form-urlencoded"), 400, "no image"),
        (lambda: raw(part() * 10_000 + CLOSE), 400, "not a form"),
        (lambda: raw(part("other") + CLOSE), 400, "no image"),
        (lambda: raw(part(extra="", content=png()) + CLOSE), 400, "no image"),
        (lambda: raw(part(extra="", content=b"x" * 1_000_000) + CLOSE), 400, "not a form"),
        (lambda: raw(form(png())[:-20]), 400, "not a form"),
        (lambda: raw(f"--{BOUNDARY}\r\nX: y\r\n\r\nz\r\n".encode() + CLOSE), 400, "not a form"),
        (lambda: raw(f"--{BOUNDARY}\r\n".encode() + b"X: " + b"y" * 1_000_000), 400, "not a form"),
        (lambda: raw(b"\r\n" * 1_000_000), 400, "not a form"),
        (lambda: raw(part(extra='; filename=""', content=png()) + CLOSE), 200, '"image"'),
        (lambda: raw(chunks(form(png())), **CHUNKED), 200, "photo.png"),
        (lambda: raw(chunks(b"x" * (serve.MAX_BODY + 1)), **CHUNKED), 413, "larger than 20 MB"),
        (lambda: raw(chunks(b"x" * (5 * serve.MAX_BODY))[:-5], **CHUNKED), 413, "larger than 20 MB"),
        (lambda: raw(b"zz\r\n", **CHUNKED), 400, "Bad Request"),
        (lambda: raw(form(png()), length="", more=["Transfer-Encoding: gzip"]), 501, "Not Implemented"),
        (lambda: raw(b"x" * (serve.MAX_BODY + 1)), 413, "larger than 20 MB"),
        (lambda: raw(b"x" * 1_000_000, length=10**11), 413, "larger than 20 MB"),
        (lambda: raw(b"", length=10**6, more=["Expect: 100-continue"], first="POST /x HTTP/1.1"), 404, "error"),
        (lambda: raw(b"", length=10**8, more=["Expect: 100-continue"]), 413, "larger than 20 MB"),
        (lambda: raw(b"x", length="9" * 5000), 400, "Bad Request"),
        (lambda: raw(b"x", length="-1"), 400, "Bad Request"),
        (lambda: raw(b"x", length="1, 2"), 400, "Bad Request"),
        (lambda: raw(more=[f"X-{i}: y" for i in range(20_000)]), 431, "Too Large"),
        (lambda: raw(more=["X: " + "y" * 3_000_000]), 431, "Too Large"),
        (lambda: raw(more=["no header"]), 400, "Bad Request"),
        (lambda: b"\0\1\2\3\r\n\r\n", 400, "Bad Request"),
        (lambda: b"GET http://[::1 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "Bad Request"),
        (lambda: b"GET / HTTP/1.0\r\n\r\n", 403, "no page of the name"),
        (lambda: raw(form(png()), first="PUT /detect HTTP/1.1"), 405, "error"),
        (lambda: raw(form(png()), first="POST / HTTP/1.1"), 405, "error"),
        (lambda: raw(form(png()), first="GET /detect HTTP/1.1"), 405, "error"),
    ],
    ids=range(36),
)
def test_a_hostile_request_gets_a_word(request_, status, word, lasting, capfd, caplog):
    got = lasting.send(request_())
    assert got, "closed without a word"
    assert (got[0], word in got[1].decode()) == (status, True), got
    assert len(got[1]) < 1000
    assert lasting.ask()[0] == 200
    assert lasting.upload(png())[0] == 200
    assert not caplog.records
    assert "Traceback" not in "".join(capfd.readouterr())


def test_a_client_that_goes_before_the_answer_leaves_no_traceback(lasting, caplog, monkeypatch):
    begun, over = threading.Event(), threading.Event()

    class Late(serve_http.Channel.error_task_class):
        def execute(self):
            begun.set()
            until(lambda: not self.channel.connected)
            over.set()
            super().execute()

    monkeypatch.setattr(serve_http.Channel, "error_task_class", Late)
    with lasting.connect() as client:
        client.sendall(b"\0\r\n\r\n")
        assert begun.wait(20)
    assert over.wait(20)
    assert lasting.ask()[0] == 200
    assert not caplog.records


def test_a_client_that_sends_all_before_it_reads_hears_why(lasting):
    status, _, body = lasting.ask("POST", "/detect", bytes(serve_http.READ * serve.MAX_BODY + 1), TYPE)
    assert (status, "larger than 20 MB" in body.decode()) == (413, True)


def frames():
    return [Image.new("RGB", (40, 30), shade) for shade in ("red", "blue")]


def too_large_png():
    """A PNG that claims 13000 x 13000 pixels."""
    out = bytearray(png())
    out[16:24] = (13000).to_bytes(4, "big") * 2
    out[29:33] = zlib.crc32(out[12:29]).to_bytes(4, "big")
    return bytes(out)


@pytest.mark.parametrize(
    ("content", "status", "word"),
    [
        (too_large_png, 400, "more than 50,000,000 pixels"),
        (lambda: encoded(Image.new("1", (50_001, 1000))), 400, "more than 50,000,000 pixels"),
        (lambda: encoded(frames()[0], "GIF", save_all=True, append_images=frames()[1:]), 400, "GIF"),
        (lambda: encoded(frames()[0], "PNG", save_all=True, append_images=frames()[1:]), 200, "40"),
        (lambda: encoded(frames()[0], "WEBP", save_all=True, append_images=frames()[1:]), None, "photo"),
        (lambda: encoded(Image.new("CMYK", (40, 30)), "JPEG"), 200, "40"),
        (lambda: encoded(Image.fromarray(np.full((30, 40), 40_000, np.uint16))), 200, "40"),
        (lambda: png(30, 40)[:-500], 400, "photo.png: "),
        (lambda: encoded(Image.new("RGB", (1, 30_000)), "JPEG"), 200, "30000"),
        (lambda: b"\x89PNG\r\n\x1a\n" + b"\0" * 5000, 400, "photo.png: "),
    ],
    ids=["claims", "wide", "gif", "apng", "webp", "cmyk", "16 bits", "truncated", "thin", "zeros"],
)
def test_pictures_of_all_kinds(content, status, word, lasting):
    before = len(lasting.stub.images)
    got, _, body = lasting.upload(content())
    assert got in (200, 400)
    assert status in (None, got)
    assert word in body.decode()
    assert len(lasting.stub.images) - before == (got == 200)
    assert "\n" not in json.loads(body).get("error", "")


@pytest.mark.parametrize("function", ["safe_decode", "BytesIO"])
def test_too_little_memory_is_told(function, lasting, monkeypatch, capfd):
    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr(serve, function, full)
    status, _, body = lasting.upload(png())
    assert (status, "too large for the memory" in body.decode()) == (503, True)
    monkeypatch.undo()
    assert lasting.upload(png())[0] == 200
    assert "Traceback" not in "".join(capfd.readouterr())


def test_a_large_png_is_refused(lasting):
    if not LARGE_PNG.exists():
        pytest.skip("no large PNG here")
    status, _, body = lasting.upload(LARGE_PNG.read_bytes())
    assert (status, "pixels" in body.decode()) == (400, True)
    assert lasting.ask()[0] == 200


def test_a_name_is_only_text(lasting):
    body = lasting.upload(png(), "../<img src=x onerror=alert(1)>\x1b[31m\u202e\0.png")[2]
    assert json.loads(body)["name"] == "<img src=x onerror=alert(1)>[31m.png"
    status, headers, text = lasting.ask("GET", f"/json/{json.loads(body)['id']}")
    assert headers["Content-Type"] == "application/json"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert len(json.loads(lasting.upload(png(), "n" * 5000)[2])["name"]) <= 100


def test_the_page_cannot_be_framed_or_posted_to_by_another_site(lasting):
    _, headers, _ = lasting.ask()
    assert headers["X-Frame-Options"] == "DENY"
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    for name in ("frame-ancestors", "base-uri", "form-action", "default-src"):
        assert policy[name] == "'none'"
    assert "unsafe" not in headers["Content-Security-Policy"]
    own = f"http://127.0.0.1:{lasting.address[1]}"
    for given, status in (
        ({"Origin": own, "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": own, "Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
    ):
        assert lasting.ask("POST", "/detect", form(png()), TYPE | given)[0] == status


# ---------------------------------------------------------------------------------------------------------
# names


@pytest.mark.parametrize(
    ("host", "bound", "names", "good", "bad"),
    [
        ("127.0.0.1", "127.0.0.1", [], ["127.0.0.1", "localhost:80", "[::1]:7", "LocalHost."], ["10.0.0.1", "a.b"]),
        ("::1", "::1", [], ["[::1]:7860", "[0:0:0:0:0:0:0:1]", "localhost"], ["[::2]"]),
        ("10.1.2.3", "10.1.2.3", [], ["10.1.2.3:7860", "localhost"], ["10.1.2.4", "10.1.2.3.evil.example"]),
        ("Lab.example", "10.1.2.3", [], ["lab.example:7860", "10.1.2.3"], ["lab.example.evil.example"]),
        ("0.0.0.0", "0.0.0.0", [], ["localhost", "127.0.0.1:7"], ["0.0.0.0", "10.1.2.3", "lab.example"]),
        ("::", "::", ["lab.example, 10.1.2.3", "[fe80::2]"], ["lab.example:1", "10.1.2.3", "[fe80::2]:5"], ["[::]"]),
        (
            "0.0.0.0",
            "0.0.0.0",
            ["a.example"],
            ["A.example:99999"],
            ["", "a.example:x", "a.example, b", "http://a.example", "a.example@b", "[a.example", "a.example:1:2"],
        ),
    ],
)
def test_names_that_the_page_answers_to(host, bound, names, good, bad):
    hosts = serve.allowed_hosts(host, bound, names)
    client = serve.create_app(Stub(), hosts).test_client()
    for status, given in ((200, good), (403, bad)):
        for name in given:
            reply = client.get("/", headers={"Host": name})
            assert reply.status_code == status, name
    assert "--allow_host" in reply.get_json()["error"]


@pytest.mark.parametrize("name", ["http://a.example", "a.example:80", "a b", "", "*", "a/b", "1.2.3.4:80"])
def test_an_allowed_host_that_is_no_name(name, refusal):
    with refusal(UserError, "--allow_host", repr(name)):
        serve.allowed_hosts("0.0.0.0", "0.0.0.0", ["good.example", name])


def test_served_at_an_address_of_version_6(start):
    try:
        page = start(host="::1", hosts=serve.allowed_hosts("::1", "::1"))
    except UserError:
        pytest.skip("no IPv6 on this machine")
    assert page.ask()[0] == 200
    own = f"http://[::1]:{page.address[1]}"
    assert page.ask("POST", "/detect", form(png()), TYPE | {"Origin": own})[0] == 200


# ---------------------------------------------------------------------------------------------------------
# the end


def test_the_end_answers_who_is_at_work_and_refuses_who_waits(page):
    page.stub.go_on.clear()
    with ThreadPoolExecutor(4) as pool, page.connect() as sending:
        asked = [pool.submit(page.upload, png()) for _ in range(4)]
        sending.sendall(raw(form(png()), length=10_000))
        until(lambda: page.line.taken == 4)
        page.server.stop()
        until(lambda: sum(f.done() for f in asked) == 3)
        page.stub.go_on.set()
        answers = [f.result() for f in asked] + [answer(sending)]
    assert Counter(a[0] for a in answers) == {200: 1, 503: 4}
    assert all("stopping" in a[-1].decode() for a in answers if a[0] == 503)
    page.thread.join(10)
    with pytest.raises(OSError):
        page.connect()


def test_the_end_waits_a_few_seconds_at_most(page, monkeypatch):
    monkeypatch.setattr(serve_http, "GRACE", 1.5)
    page.stub.go_on.clear()
    with ThreadPoolExecutor(1) as pool, page.connect():
        asked = pool.submit(page.upload, png())
        until(lambda: page.stub.images)
        start = time.monotonic()
        page.server.stop()
        assert asked.result()[0] == 503
        page.thread.join(10)
        assert time.monotonic() - start < 8
    page.stub.go_on.set()


PROGRAM = """
import sys, threading, types
class Stub:
    def __init__(self, config, checkpoint, batch_size): self.first = True
    def __call__(self, images):
        if isinstance(images, list): return
        print("at work", flush=True)
        threading.Event().wait(60)
sys.modules["src.inference.predictor"] = types.SimpleNamespace(Predictor=Stub)
import infer, src.inference.page.server
src.inference.page.server.GRACE = float(sys.argv[1])
sys.argv = ["infer.py", "--config_path", "configs/shapes.yaml", "--ckpt_file", "none.ckpt", "--serve", "--port", "0"]
infer.run_command(infer.main)
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("times", [1, 2])
def test_a_signal_ends_the_command_in_order(number, status, times):
    with subprocess.Popen(
        # a second signal doesn't wait
        ["env", "--default-signal=INT", sys.executable, "-c", PROGRAM, "60" if times == 2 else "1.5"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        port = int(next(m[1] for line in child.stdout if (m := re.search(r"http://127.0.0.1:(\d+)", line))))
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(ask, ("127.0.0.1", port), "POST", "/detect", form(png()), TYPE)
            assert child.stdout.readline() == "at work\n"
            start = time.monotonic()
            child.send_signal(number)
            if times == 2:
                time.sleep(0.2)
                child.send_signal(number)
            assert child.wait(20) == status
            assert time.monotonic() - start < 10
            if times == 1:
                assert asked.result()[0] == 503
        assert child.stderr.read().count("\n") == 1
