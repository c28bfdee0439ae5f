"""LiteRT.js, the runtime of web pages, in headless Chromium."""

from __future__ import annotations

import functools
import http.server
import json
import queue
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tfcompress.files import children, temporary
from tfcompress.tools.comparison import compare
from tfcompress.tools.driving import DRIVERS, Answer, NotApplicable, Outcome, Refused, Tool
from tfcompress.tools.environments import node_environment, program
from tfcompress.tools.subject import Subject

PACKAGES = ("@litertjs/core@2.5.3", "@litertjs/wasm-utils@2.5.3")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
DTYPES = ("float32", "int32")  # of its tensors
SECONDS = 120.0

# No GPU, no network of the browser's own, and no sandbox, which root may not have.
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--disable-dev-shm-usage",
)

_KINDS = {".html": "text/html", ".js": "text/javascript", ".wasm": "application/wasm"}


def run(file: Subject) -> Outcome:
    """Compare its outputs, if inputs and outputs are of types that it has."""
    for name, value in (*file.inputs[0].items(), *file.expected[0].items()):
        if value.dtype.name not in DTYPES:
            raise NotApplicable(
                f"'{name}' is {value.dtype}, and LiteRT.js takes and gives {' and '.join(DTYPES)} "
                'only; convert with io_dtype="float32"'
            )
    return compare(file, _run, lsb=1)


TOOL = Tool("LiteRT.js 2.5.3 in Chromium (WebAssembly)", run)


def _run(file: Subject) -> Answer:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None) or program(
        "chromium", "chromium"
    )
    packages = node_environment("litertjs", PACKAGES) / "node_modules"
    samples = [
        [
            {"name": name, "dtype": value.dtype.name, "shape": value.shape, "values": value.ravel()}
            for name, value in sample.items()
        ]
        for sample in file.inputs
    ]
    request = {"samples": samples, "outputs": list(file.units)}
    pages = {
        "/": (DRIVERS / "litertjs.html").read_bytes(),
        "/model.tflite": file.data,
        "/samples.json": json.dumps(request, default=np.ndarray.tolist).encode(),
    }
    answers: queue.Queue[dict[str, Any]] = queue.Queue()
    with _served(pages, packages, answers) as address, _browsing(browser, address):
        try:
            answer = answers.get(timeout=SECONDS)
        except queue.Empty:
            raise Refused(f"LiteRT.js did not end within {SECONDS:.0f} s") from None
    if "outputs" not in answer:
        raise Refused(" ".join(str(answer.get("refused")).split())[:400])
    outputs = [[np.array(v, np.float64) for v in sample] for sample in answer["outputs"]]
    return Answer(outputs, {}, {})


@contextmanager
def _served(
    pages: dict[str, bytes], packages: Path, answers: queue.Queue[dict[str, Any]]
) -> Iterator[str]:
    handler = functools.partial(_Handler, pages, packages.resolve(), answers)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()


@contextmanager
def _browsing(browser: str, address: str) -> Iterator[None]:
    # Without an address to debug at, headless Chromium ends once the page is loaded.
    flags = [*_FLAGS, "--remote-debugging-port=0"]
    none = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    with (
        temporary.folder() as profile,
        children.child([browser, *flags, f"--user-data-dir={profile}", address], **none),
    ):
        yield


class _Handler(http.server.BaseHTTPRequestHandler):
    """Serves the pages and the packages, and takes the answer."""

    def __init__(self, pages, packages, answers, *args):
        self.pages, self.packages, self.answers = pages, packages, answers
        super().__init__(*args)

    def do_GET(self):
        content = self.pages.get(self.path)
        if content is None and self.path.startswith("/packages/"):
            file = (self.packages / self.path.removeprefix("/packages/")).resolve()
            if file.is_relative_to(self.packages) and file.is_file():
                content = file.read_bytes()
        if content is None:
            self.send_error(404)
            return
        end = Path(self.path).suffix or ".html"
        self._send(content, _KINDS.get(end, "application/octet-stream"))

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self._send(b"", "text/plain")
        self.answers.put(json.loads(body))

    def _send(self, content, kind):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass
