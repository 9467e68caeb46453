"""The page to try a detector: over HTTP, and in a browser where there is one."""

import base64
import io
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
import pytest
from PIL import Image

from src.config import load_config
from src.inference.page import serve
from src.runtime.errors import UserError

flask = pytest.importorskip("flask", reason="Flask isn't installed (requirements-serve.txt): no page to test")
pytest.importorskip("waitress", reason="waitress isn't installed (requirements-serve.txt)")

LOCAL = "http://127.0.0.1:7860"


@pytest.fixture(scope="module")
def photograph(shapes_root):
    return (shapes_root / "val2017/000000000001.jpg").read_bytes()


class Counted:
    """A predictor that counts its images."""

    def __init__(self, predictor):
        self.predictor, self.images, self.hold = predictor, [], None

    def __call__(self, image):
        self.images.append(image)
        if self.hold:
            self.hold.wait(30)
        return self.predictor(image)


@pytest.fixture
def predictor(tiny_predictor):
    return Counted(tiny_predictor)


@pytest.fixture
def client(predictor):
    return serve.create_app(predictor).test_client()


def post(client, content, name="photo.jpg", **options):
    data = {"image": (io.BytesIO(content), name)}
    return client.post("/detect", data=data, base_url=LOCAL, **options)


def test_an_upload_is_predicted_once_and_drawn_at_any_threshold(client, predictor, photograph, tiny_predictor):
    answer = post(client, photograph, "../../my photo.jpg")
    assert answer.status_code == 200
    body = answer.get_json()
    image = cv2.imdecode(np.frombuffer(photograph, np.uint8), cv2.IMREAD_COLOR)
    expected = tiny_predictor(np.ascontiguousarray(image[:, :, ::-1]))
    assert body["name"] == "my photo.jpg"
    assert (body["height"], body["width"]) == image.shape[:2]
    np.testing.assert_allclose(body["scores"], expected.scores, atol=1e-4)  # rounded to four digits
    pictures = []
    middle = float(expected.scores[5])
    for score in (0, middle, 1):
        reply = client.get(f"/picture/{body['id']}?score={score}", base_url=LOCAL)
        assert reply.mimetype == "image/jpeg"
        pictures.append(cv2.imdecode(np.frombuffer(reply.data, np.uint8), cv2.IMREAD_COLOR).astype(int))
    assert max(pictures[0].shape) >= 640
    assert np.abs(pictures[0] - pictures[1]).max() > 60
    assert np.abs(pictures[1] - pictures[2]).max() > 60
    reply = client.get(f"/json/{body['id']}?score={middle}", base_url=LOCAL)
    assert "attachment" in reply.headers["Content-Disposition"]
    assert json.loads(reply.data) == {"my photo.jpg": expected.above(middle).to_entry()}
    assert len(predictor.images) == 1


def test_photographs_are_turned_upright(client, predictor, photograph):
    exif = Image.Exif()
    exif[0x0112] = 6
    out = io.BytesIO()
    picture = Image.open(io.BytesIO(photograph))
    picture.save(out, "JPEG", exif=exif)
    body = post(client, out.getvalue()).get_json()
    assert (body["width"], body["height"]) == (picture.height, picture.width)
    # what the detector is given, and what the page shows with its boxes, is what OpenCV's own turning makes of it
    upright = cv2.imdecode(np.frombuffer(out.getvalue(), np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(predictor.images[0], upright[:, :, ::-1])
    reply = client.get(f"/picture/{body['id']}?score=1", base_url=LOCAL)
    shown = cv2.imdecode(np.frombuffer(reply.data, np.uint8), cv2.IMREAD_COLOR)
    assert (shown.shape[0] > shown.shape[1]) == (upright.shape[0] > upright.shape[1])
    bare = cv2.resize(upright, shown.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    assert (np.abs(shown.astype(int) - bare).max(2) > 60).mean() < 0.01


def large_header():
    out = io.BytesIO()
    Image.new("1", (9000, 9000)).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (lambda _: b"hello", "not an image"),
        (lambda _: b"", "empty"),
        (lambda _: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        (lambda p: p[: len(p) // 2], "damaged"),
        (lambda _: large_header(), "more than 50,000,000 pixels"),
    ],
)
def test_other_content_is_refused_whatever_its_name(content, part, client, predictor, photograph):
    answer = post(client, content(photograph), "renamed.jpg")
    assert answer.status_code == 400
    assert answer.get_json()["error"].startswith("renamed.jpg: ")
    assert part in answer.get_json()["error"]
    assert not predictor.images


def test_large_uploads_are_refused(client, predictor):
    answer = post(client, b"\xff" * (serve.MAX_UPLOAD + 100_000))
    assert answer.status_code == 413
    assert "larger than 20 MB" in answer.get_json()["error"]
    assert not predictor.images


def test_requests_that_are_not_the_pages(client, photograph, predictor):
    assert client.post("/detect", base_url=LOCAL).get_json()["error"] == "no image in the form"
    # a page of another site, by its own name or by one that it pointed here
    assert post(client, photograph, headers={"Origin": "http://evil.example"}).status_code == 403
    assert client.get("/", base_url="http://evil.example:7860").status_code == 403
    for path in ("/picture/guess", "/json/guess", "/../infer.py", "/static/x"):
        assert client.get(path, base_url=LOCAL).status_code == 404
    assert not predictor.images


@pytest.mark.parametrize("score", ["nan", "-5", "x", "1e9"])
def test_any_threshold_is_answered(score, client, photograph):
    body = post(client, photograph).get_json()
    assert client.get(f"/picture/{body['id']}?score={score}", base_url=LOCAL).status_code == 200


def test_old_pictures_are_dropped(tiny_predictor, photograph, monkeypatch):
    monkeypatch.setattr(serve, "KEPT", 2)
    client = serve.create_app(tiny_predictor).test_client()
    ids = [post(client, photograph).get_json()["id"] for _ in range(3)]
    replies = [client.get(f"/picture/{i}", base_url=LOCAL) for i in ids]
    assert [r.status_code for r in replies] == [404, 200, 200]
    assert "drop the image again" in replies[0].get_json()["error"]


def test_the_line_of_uploads_is_bounded(predictor, photograph, monkeypatch):
    monkeypatch.setattr(serve, "WAITING", 1)
    app = serve.create_app(predictor)
    predictor.hold = threading.Event()
    first = []
    thread = threading.Thread(target=lambda: first.append(post(app.test_client(), photograph).status_code))
    thread.start()
    while not predictor.images:
        pass
    busy = post(app.test_client(), photograph)
    predictor.hold.set()
    thread.join()
    assert busy.status_code == 503
    assert "busy" in busy.get_json()["error"]
    assert first == [200]


def test_the_page_needs_nothing_from_elsewhere(client):
    reply = client.get("/", base_url=LOCAL)
    text = reply.get_data(as_text=True)
    assert "http://" not in text
    assert "https://" not in text
    assert "default-src 'none'" in reply.headers["Content-Security-Policy"]


def test_missing_packages_are_named(monkeypatch, refusal, tiny_model):
    monkeypatch.setattr(serve.importlib.util, "find_spec", lambda name: None)
    with refusal(UserError, "pip install -r requirements-serve.txt", "flask"):
        serve.serve(load_config("configs/shapes.yaml"), "none.ckpt")


def test_an_address_that_is_taken(refusal):
    taken = serve.bind("127.0.0.1", 0)
    port = taken.getsockname()[1]
    with refusal(UserError, "127.0.0.1", port, "--port"):
        serve.bind("127.0.0.1", port)
    taken.close()
    with refusal(UserError, "no.such.host.invalid", "--host"):
        serve.bind("no.such.host.invalid", 0)
    with refusal(UserError, "99999", "--port"):
        serve.bind("127.0.0.1", 99999)


# ---------------------------------------------------------------------------------------------------------
# in a browser


@pytest.fixture
def address(predictor):
    """The page served on a free port of this machine."""
    listening = serve.bind("127.0.0.1", 0)
    server = serve.create_server(serve.create_app(predictor), listening)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.stop()
    thread.join(10)


@pytest.fixture
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed: no browser test")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no Chromium on this machine: the page isn't tested in a browser")
    quiet = "no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update"
    with playwright.sync_playwright() as p:
        started = p.chromium.launch(
            executable_path=path, args=[f"--{word}" for word in f"{quiet} disable-sync".split()]
        )
        yield started
        started.close()


def open_page(browser, address, errors):
    page = browser.new_context().new_page()
    page.on("pageerror", lambda e: errors.append(str(e)))
    page.on("request", lambda r: errors.append(r.url) if not r.url.startswith((address, "blob:", "data:")) else None)
    page.goto(address)
    return page


def pixels(page):
    """The picture (H, W, 3) RGB that the page shows."""
    script = """() => { const i = document.querySelector('#picture'), c = document.createElement('canvas');
        c.width = i.naturalWidth; c.height = i.naturalHeight; c.getContext('2d').drawImage(i, 0, 0);
        return c.toDataURL('image/png').split(',')[1]; }"""
    data = np.frombuffer(base64.b64decode(page.evaluate(script)), np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_COLOR)[:, :, ::-1].astype(int)


def wait_for_picture(page, score="0.50"):
    page.wait_for_function(
        "s => { const i = document.querySelector('#picture'); return i.dataset.score === s && i.complete; }",
        arg=score,
    )


def test_two_users_in_a_browser(address, browser, shapes_root, tmp_path, predictor):
    errors = []
    pages = [open_page(browser, address, errors) for _ in range(2)]
    for i, page in enumerate(pages, 1):
        page.set_input_files("#file", shapes_root / f"val2017/{i:012d}.jpg")
    for i, page in enumerate(pages, 1):
        wait_for_picture(page)
        assert f"{i:012d}.jpg" in page.text_content("#message")
        shown = pixels(page)
        bare = cv2.imread(str(shapes_root / f"val2017/{i:012d}.jpg"))[:, :, ::-1]
        bare = cv2.resize(bare, shown.shape[1::-1], interpolation=cv2.INTER_CUBIC)
        # masks, boxes and names are drawn; nothing of them is left past the highest score
        assert (np.abs(shown - bare).max(2) > 60).mean() > 0.01
        page.fill("#score", "1")
        wait_for_picture(page, "1.00")
        assert (np.abs(pixels(page) - bare).max(2) > 60).mean() < 0.001
        assert page.text_content("#count").startswith("0 of ")
    assert len(predictor.images) == 2
    pages[0].fill("#score", "0.3")
    wait_for_picture(pages[0], "0.30")
    with pages[0].expect_download() as download:
        pages[0].click("#json")
    [(name, entry)] = json.loads(download.value.path().read_text()).items()
    assert name == "000000000001.jpg"
    assert entry["predictions"]
    assert all(p["score"] >= 0.3 and p["mask"]["counts"] for p in entry["predictions"])

    (tmp_path / "letter.jpg").write_text("a text, not a photograph")
    pages[0].set_input_files("#file", tmp_path / "letter.jpg")
    pages[0].wait_for_selector("#message.error")
    assert "letter.jpg: not an image" in pages[0].text_content("#message")
    assert not pages[0].is_visible("#result")
    assert pages[1].is_visible("#result")
    assert not errors


def test_another_site_can_neither_frame_nor_post(address, browser, predictor):
    form = f"<form method=post enctype=multipart/form-data action={address}/detect><input type=submit></form>"

    class Foreign(BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802 - the library's name
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(f"<iframe src={address}></iframe>{form}".encode())

    with ThreadingHTTPServer(("127.0.0.1", 0), Foreign) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        page, told = browser.new_context().new_page(), []
        page.on("console", lambda message: told.append(message.text))
        page.goto(f"http://localhost:{other.server_address[1]}/")
        assert any("frame-ancestors" in text for text in told)
        assert "Try the detector" not in page.frames[-1].content()
        page.click("input")
        page.wait_for_url(f"{address}/detect")
        assert "a request of another site" in page.content()
        other.shutdown()
    assert not predictor.images
