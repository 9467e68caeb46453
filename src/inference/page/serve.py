"""A local web page to try a detector: python infer.py --config_path CFG --ckpt_file CKPT --serve.

The page drops an image, the server answers with a picture of its detections. It is drawn again, without the network,
when the threshold moves. Uploads are told by their content, bounded in bytes, pixels and number, predicted one at a
time, and kept in memory alone.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import json
import re
import secrets
import socket
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from src.config import Config
from src.data.images import safe_decode
from src.runtime.errors import UserError
from src.runtime.errors import shown as quoted
from src.runtime.newer import zip_equal

if TYPE_CHECKING:
    from src.evaluation.detections import Detections

__all__ = ["MAX_UPLOAD", "allowed_hosts", "bind", "create_app", "create_server", "serve"]

MAX_UPLOAD = 20 * 1024 * 1024  # bytes
MAX_BODY = MAX_UPLOAD + 64 * 1024  # the form around the file
MAX_PARTS = 8  # of a form; the page's has one
MAX_TEXT = 512 * 1024  # bytes of its parts without a file, and of what Werkzeug looks at in one piece
MAX_PIXELS = 50_000_000
KEPT = 32  # pictures whose threshold can be moved, the newest of all users
WAITING = 8  # uploads at work or in line; more are asked to come again
DRAWINGS = 4  # pictures and detections that are being made for downloads, or in line
RETRY = "5"  # seconds after which to come again
SIDES = 640, 1600  # pictures with a longer side outside this are enlarged or reduced
LOCAL = frozenset(("127.0.0.1", "localhost", "::1"))
PAGE = Path(__file__).with_name("page.html")
NOTHING = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
POLICY = NOTHING + ("; img-src 'self' blob: data:; connect-src 'self'; script-src 'nonce-{0}'; style-src 'nonce-{0}'")
TOO_LARGE = f"larger than {MAX_UPLOAD >> 20} MB; make it smaller", 413


@dataclass
class Kept:
    """One upload: its picture at the size it is shown in, and what was found."""

    name: str
    picture: np.ndarray
    detections: Detections
    shown: dict[tuple[str, int], Any] = field(default_factory=dict)  # values at the picture's size, by branch and place


class Shelf:
    """The newest uploads by a token that can't be guessed."""

    def __init__(self, size: int):
        self.size, self.lock = size, threading.Lock()
        self.items: OrderedDict[str, Kept] = OrderedDict()

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


def create_app(predictor, hosts: Iterable[str] = LOCAL):
    """The Flask app. predictor: a Predictor, or anything that turns an (H, W, 3) uint8 RGB array into Detections.

    hosts: names that the page answers to, see allowed_hosts, so that no other site can point its own name here.

    GET / is the page; POST /detect takes the form's file `image` and answers {"id", "name", "predictions", ...}, or
    {"error"} with status 400, 403, 408, 413 or 503; GET /picture/ID?score=S is a JPEG; GET /json/ID?score=S the
    detections. extensions["line"] is the Line of its uploads.
    """
    from flask import Flask, Response, jsonify, request
    from werkzeug.exceptions import HTTPException
    from werkzeug.formparser import parse_form_data

    from src.inference.page.server import CROWDED, REFUSED, STOPPING, BusyError, Line, StoppingError

    app = Flask("serve", static_folder=None)
    hosts, shelf = frozenset(hosts), Shelf(KEPT)
    line = app.extensions["line"] = Line(WAITING)
    drawings, pen = threading.BoundedSemaphore(DRAWINGS), threading.Lock()

    def refuse(message: str, status: int) -> tuple:
        return jsonify(error=message), status, {"Retry-After": RETRY} if status == 503 else {}

    @app.errorhandler(HTTPException)
    def http_error(e: HTTPException) -> tuple:
        return refuse(e.description or e.name, e.code or 500)

    @app.before_request
    def known() -> tuple | None:
        given = request.headers.get("Host", "")
        if host_name(given) not in hosts:
            return refuse(f"no page of the name {quoted(given)}; --allow_host NAME adds a name", 403)
        # a form of another site may post here, but a browser says whose it is
        origin, site = request.headers.get("Origin"), request.headers.get("Sec-Fetch-Site", "none")
        foreign = (origin and origin.split("://")[-1] != given) or site not in ("same-origin", "none")
        return refuse("a request of another site", 403) if request.method == "POST" and foreign else None

    @app.after_request
    def harden(response: Response) -> Response:
        response.headers.setdefault("Content-Security-Policy", NOTHING)
        response.headers["X-Frame-Options"] = "DENY"
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
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
        if refusal := request.environ.get(REFUSED):
            return refuse(*refusal)
        if (request.content_length or 0) > MAX_BODY:
            return refuse(*TOO_LARGE)
        name = "image"
        try:
            with line.place():
                file = uploaded()
                if file is None:
                    return refuse("no image in the form", 400)
                name, gone = clean_name(file.filename), request.environ.get("waitress.client_disconnected")
                token, found = line.run(lambda: look_at(file.stream.getvalue(), name, gone))
        except BusyError:
            return refuse(*CROWDED)
        except StoppingError:
            return refuse(*STOPPING)
        except MemoryError:
            return refuse(f"{name}: too large for the memory that is free; make it smaller", 503)
        except UserError as e:
            return refuse(str(e), 400)
        scores = [round(float(s), 4) for s in found.scores]
        return jsonify(id=token, name=name, height=found.height, width=found.width, scores=scores, names=found.names)

    def uploaded():
        """The form's file; None where there is none. Raises UserError for what is no form."""
        if request.mimetype != "multipart/form-data":
            return None
        try:
            return parse_form_data(
                request.environ,
                stream_factory=lambda *_, **__: BytesIO(),  # Werkzeug's own writes to the disk
                max_form_memory_size=MAX_TEXT,
                max_form_parts=MAX_PARTS,
                silent=False,
            )[2].get("image")
        except (HTTPException, KeyError, ValueError):
            raise UserError("not a form as the page sends it") from None

    def look_at(data: bytes, name: str, gone: Callable[[], bool] | None) -> tuple[str, object]:
        """The token of an upload and its Detections. Raises UserError, MemoryError."""
        if gone and gone():
            raise StoppingError
        # a browser shows photographs turned as their EXIF orientation says
        image = safe_decode(data, name, exif="upright", max_pixels=MAX_PIXELS)
        picture = shown(image)
        image = np.ascontiguousarray(image[:, :, ::-1])
        found = predictor(image)
        return shelf.put(Kept(name, picture, found)), found

    def made(token: str, make: Callable[[Kept, float], Response]) -> Response | tuple:
        if (kept := shelf.get(token)) is None:
            return refuse("no longer kept; drop the image again", 404)
        if not drawings.acquire(blocking=False):
            return refuse("busy drawing; try again in a moment", 503)
        try:
            with pen:
                return make(kept, score_of(request))
        finally:
            drawings.release()

    @app.get("/picture/<token>")
    def picture(token: str) -> Response | tuple:
        def make(kept: Kept, score: float) -> Response:
            _, data = cv2.imencode(".jpg", draw(kept, score), [cv2.IMWRITE_JPEG_QUALITY, 92])
            return Response(data.tobytes(), mimetype="image/jpeg")

        return made(token, make)

    @app.get("/json/<token>")
    def download(token: str) -> Response | tuple:
        def make(kept: Kept, score: float) -> Response:
            text = json.dumps({kept.name: kept.detections.above(score).to_entry()}, indent=1)
            disposition = {"Content-Disposition": "attachment; filename=predictions.json"}
            return Response(text, mimetype="application/json", headers=disposition)

        return made(token, make)

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
    from src.drawing.objects import draw_detections
    from src.evaluation.kinds import branch_kinds, layers_of

    d = kept.detections
    height, width = kept.picture.shape[:2]
    boxes = d.boxes * np.array([width / d.width, height / d.height] * 2, np.float32)
    names = dict(zip_equal(d.labels.tolist(), d.names))
    fields = {}
    for branch, kind in branch_kinds(d.fields).items():
        # a mask as large as the upload takes long to decode, so once
        for i in np.flatnonzero(d.scores >= score).tolist():
            if (branch, i) not in kept.shown:
                kept.shown[branch, i] = kind.resized(d.fields[branch][i], d.height, d.width, (height, width))
        fields[branch] = [kept.shown.get((branch, i)) for i in range(len(d))]
    return draw_detections(kept.picture, boxes, d.scores, d.labels, layers_of(fields), names, score)


def one_form(name: str) -> str:
    """A host's name in small letters, or its address as ipaddress writes it; empty for what is neither."""
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        name = name.lower().rstrip(".")
        return name if re.fullmatch(r"[\w.-]+", name, re.ASCII) else ""


def host_name(header: str) -> str:
    """The name or address of a Host header, in one form; empty for what is none."""
    match = re.fullmatch(r"(\[[^][]*\]|[^][:]*)(:\d{1,5})?", header)
    return one_form(match[1].strip("[]")) if match else ""


def allowed_hosts(host: str, bound: str, names: Iterable[str] = ()) -> frozenset[str]:
    """Names by which a browser may ask for the page, in one form: this machine's own; the one address that is `bound`
    and the `host` that stands for it; and `names`, given as A or A,B. Raises UserError for one that can't be a name.
    """
    bound = bound.partition("%")[0]  # browsers leave an address's zone out
    out = set(LOCAL)
    if not ipaddress.ip_address(bound).is_unspecified:
        out |= {one_form(bound), one_form(host)}
    for given in (part.strip() for word in names for part in word.split(",")):
        name = one_form(given.strip("[]"))
        if not name:
            raise UserError(
                f"--allow_host {quoted(given)}: no name or address; write it as example.org, without http:// and port"
            )
        out.add(name)
    return frozenset(out - {""})


def check_packages() -> None:
    """Raises UserError where the page's packages aren't installed."""
    lacking = [name for name in ("flask", "waitress") if importlib.util.find_spec(name) is None]
    if lacking:
        raise UserError(f"--serve needs {' and '.join(lacking)}: pip install -r requirements-serve.txt")


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises UserError."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # of a port that is too large getaddrinfo gives another
        bound.bind((address[0], port, *address[2:]))
        bound.listen(64)
        return bound
    except (OSError, OverflowError, UnicodeError) as e:
        reason = getattr(e, "strerror", None) or e
        raise UserError(f"can't serve at {host} port {port}: {reason}; name another --host or --port") from None


def create_server(app, listening: socket.socket):
    """The Server of an app that create_app made, at a listening socket."""
    from src.inference.page.server import CROWDED, Server

    line = app.extensions["line"]

    def admit(method: str, path: str) -> tuple[str, int] | None:
        if (method, path) != ("POST", "/detect"):
            return "nothing to send here", 404
        return CROWDED if line.full else None

    return Server(app, listening, line, WAITING + DRAWINGS, admit, MAX_BODY, TOO_LARGE)


def serve(
    config: Config, checkpoint: str, host: str = "127.0.0.1", port: int = 7860, allow_host: Iterable[str] = ()
) -> None:
    """Serves the page until SIGTERM or Ctrl-C, which have their effect then. Raises UserError.

    allow_host: further names that the page answers to, see allowed_hosts.
    """
    check_packages()
    listening = bind(host, port)
    address, port = listening.getsockname()[:2]
    hosts = allowed_hosts(host, address, allow_host)

    from src.inference.predictor import Predictor

    predictor = Predictor(config, checkpoint, batch_size=1)
    print("compiling the network ...", flush=True)
    blank = np.zeros((config.img_height, config.img_width, 3), np.uint8)
    predictor([blank, blank.transpose(1, 0, 2).copy()] if config.turns_canvas else [blank])
    server = create_server(create_app(predictor, hosts), listening)
    print(f"serving at http://{f'[{host}]' if ':' in host else host}:{port} (Ctrl-C ends)", flush=True)
    if not ipaddress.ip_address(address).is_loopback:
        print(f"note: whoever reaches {host} can use it; there are no passwords", flush=True)
        print(f"note: it answers to {', '.join(sorted(hosts))}; --allow_host NAME adds a name", flush=True)
    server.run()
