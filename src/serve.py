"""A local web page to try a detector: python infer.py --config_path CFG --ckpt_file CKPT --serve.

The page drops an image, the server answers with a picture of its detections. It is drawn again, without the network,
when the threshold moves. Uploads are told by their content, bounded in bytes and pixels, and kept in memory alone.
"""

import importlib.util
import json
import secrets
import socket
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from src.config import Config
from src.data.images import safe_decode
from src.runtime.errors import UserError

__all__ = ["MAX_UPLOAD", "create_app", "serve"]

MAX_UPLOAD = 20 * 1024 * 1024  # bytes
MAX_PIXELS = 50_000_000
KEPT = 32  # pictures whose threshold can be moved, the newest of all users
WAITING = 8  # uploads at work or in line; more are asked to come again
SIDES = 640, 1600  # pictures with a longer side outside this are enlarged or reduced
LOCAL = ("127.0.0.1", "localhost", "::1")
PAGE = Path(__file__).with_name("serve.html")
POLICY = (
    "default-src 'none'; img-src 'self' blob: data:; connect-src 'self'; script-src 'nonce-{0}'; style-src 'nonce-{0}'"
)


@dataclass
class Kept:
    """One upload: its picture at the size it is shown in, and what was found."""

    name: str
    picture: np.ndarray
    detections: object


class Shelf:
    """The newest uploads by a token that can't be guessed."""

    def __init__(self, size: int):
        self.size, self.items, self.lock = size, OrderedDict(), threading.Lock()

    def put(self, item: Kept) -> str:
        token = secrets.token_urlsafe(16)
        with self.lock:
            self.items[token] = item
            while len(self.items) > self.size:
                self.items.popitem(last=False)
        return token

    def get(self, token: str) -> Kept | None:
        with self.lock:
            return self.items.get(token)


def create_app(predictor, hosts: tuple[str, ...] | None = LOCAL):
    """The Flask app. predictor: a Predictor, or anything that turns an (H, W, 3) uint8 RGB array into Detections.

    hosts: names that the page answers to, so that no other site can point its own name here; None: any.

    GET / is the page; POST /detect takes the form's file `image` and answers {"id", "name", "predictions", ...}, or
    {"error"} with status 400, 413 or 503; GET /picture/ID?score=S is a JPEG; GET /json/ID?score=S the detections.
    """
    from flask import Flask, Response, jsonify, request
    from werkzeug.exceptions import HTTPException

    app = Flask("serve", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_UPLOAD + 64 * 1024  # the form around the file
    app.config["TRUSTED_HOSTS"] = list(hosts) if hosts else None
    shelf, places = Shelf(KEPT), threading.BoundedSemaphore(WAITING)

    def refuse(message: str, status: int) -> tuple:
        return jsonify(error=message), status

    @app.errorhandler(HTTPException)
    def http_error(e: HTTPException) -> tuple:
        if e.code == 413:
            return refuse(f"larger than {MAX_UPLOAD >> 20} MB; make it smaller", 413)
        return refuse(e.description or e.name, e.code or 500)

    @app.after_request
    def harden(response: Response) -> Response:
        response.headers.setdefault("Content-Security-Policy", "default-src 'none'")
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cache-Control"] = "no-store"
        return response

    @app.get("/")
    def page() -> Response:
        nonce = secrets.token_urlsafe(16)
        text = PAGE.read_text().replace("{nonce}", nonce).replace("{max_upload}", str(MAX_UPLOAD))
        headers = {"Content-Security-Policy": POLICY.format(nonce)}
        return Response(text, mimetype="text/html", headers=headers)

    @app.post("/detect")
    def detect() -> Response | tuple:
        # a form of another site may post here, but a browser says whose it is
        origin = request.headers.get("Origin")
        if origin and origin.split("://")[-1] != request.host:
            return refuse("a request of another site", 403)
        if not places.acquire(blocking=False):
            return refuse("busy with other images; try again in a moment", 503)
        try:
            file = request.files.get("image")
            if file is None:
                return refuse("no image in the form", 400)
            name = clean_name(file.filename)
            try:
                # a browser shows photographs turned as their EXIF orientation says
                image = safe_decode(file.read(), name, exif="upright", max_pixels=MAX_PIXELS)
                found = predictor(np.ascontiguousarray(image[:, :, ::-1]))
            except UserError as e:
                return refuse(str(e), 400)
            token = shelf.put(Kept(name, shown(image), found))
        finally:
            places.release()
        scores = [round(float(s), 4) for s in found.scores]
        return jsonify(id=token, name=name, height=found.height, width=found.width, scores=scores, names=found.names)

    @app.get("/picture/<token>")
    def picture(token: str) -> Response | tuple:
        if (kept := shelf.get(token)) is None:
            return refuse("no longer kept; drop the image again", 404)
        _, data = cv2.imencode(".jpg", draw(kept, score_of(request)), [cv2.IMWRITE_JPEG_QUALITY, 92])
        return Response(data.tobytes(), mimetype="image/jpeg")

    @app.get("/json/<token>")
    def download(token: str) -> Response | tuple:
        if (kept := shelf.get(token)) is None:
            return refuse("no longer kept; drop the image again", 404)
        text = json.dumps({kept.name: kept.detections.above(score_of(request)).to_entry()}, indent=1)
        disposition = {"Content-Disposition": "attachment; filename=predictions.json"}
        return Response(text, mimetype="application/json", headers=disposition)

    return app


def score_of(request) -> float:
    """The threshold that a request asks for."""
    score = request.args.get("score", 0.5, type=float)
    return min(max(score, 0.0), 1.0) if score == score else 0.5


def clean_name(name: str | None) -> str:
    """A file's own name of printable characters, to be shown in messages."""
    last = (name or "").replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(c for c in last if c.isprintable())[:100] or "image"


def shown(image: np.ndarray) -> np.ndarray:
    """The image (H, W, 3) at the size it is shown in."""
    long = max(image.shape[:2])
    zoom = min(max(1.0, SIDES[0] / long), SIDES[1] / long, 16.0)
    if zoom == 1:
        return image
    size = [max(1, round(v * zoom)) for v in image.shape[1::-1]]
    return cv2.resize(image, size, interpolation=cv2.INTER_CUBIC if zoom > 1 else cv2.INTER_AREA)


def draw(kept: Kept, score: float) -> np.ndarray:
    """The kept picture (H, W, 3) BGR with its detections of at least `score`."""
    from src.visualize import draw_detections

    d = kept.detections
    height, width = kept.picture.shape[:2]
    boxes = d.boxes * np.array([width / d.width, height / d.height] * 2, np.float32)
    names = dict(zip(d.labels.tolist(), d.names, strict=True))
    return draw_detections(kept.picture, boxes, d.scores, d.labels, d.masks, names, score)


def check_packages() -> None:
    """Raises UserError where the page's packages aren't installed."""
    lacking = [name for name in ("flask", "waitress") if importlib.util.find_spec(name) is None]
    if lacking:
        raise UserError(f"--serve needs {' and '.join(lacking)}: pip install -r requirements-serve.txt")


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises UserError."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen(64)
        return bound
    except (OSError, OverflowError) as e:
        reason = getattr(e, "strerror", None) or e
        raise UserError(f"can't serve at {host} port {port}: {reason}; name another --host or --port") from None


def serve(config: Config, checkpoint: str, host: str = "127.0.0.1", port: int = 7860) -> None:
    """Serves the page until Ctrl-C. Raises UserError."""
    check_packages()
    listening = bind(host, port)
    import waitress

    from src.predictor import Predictor

    predictor = Predictor(config, checkpoint, batch_size=1)
    print("compiling the network ...", flush=True)
    blank = np.zeros((config.img_height, config.img_width, 3), np.uint8)
    predictor([blank, blank.transpose(1, 0, 2).copy()] if config.turns_canvas else [blank])
    # an address that is open to others has names that we can't know
    app = create_app(predictor, LOCAL if host in LOCAL else None)
    server = waitress.create_server(
        app, sockets=[listening], threads=WAITING, max_request_body_size=4 * MAX_UPLOAD, ident="", channel_timeout=60
    )
    print(
        f"serving at http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]} (Ctrl-C ends)",
        flush=True,
    )
    if host not in LOCAL:
        print(f"note: whoever reaches {host} can use it; there are no passwords", flush=True)
    try:
        server.run()
    finally:
        server.close()
