"""Serves a report to a browser on this machine. Nothing else of the run folder can be read."""

import http.server
import webbrowser
from collections.abc import Callable
from functools import partial
from pathlib import Path

from train.process.errors import UserError
from train.report.pictures import picture_path, read_pictures
from train.run.files import read_run_file
from w2jax.text import one_line

HOST = "127.0.0.1"  # other machines cannot connect to this address


class ReportServer(http.server.ThreadingHTTPServer):
    """A server on loopback for one page, and for the pictures of a run."""

    daemon_threads = True

    def __init__(self, port: int, page: Callable[[], str], folder: Path | None):
        """Starts to listen.

        Args:
            port: 0 chooses a free port.
            page: makes the HTML page. It is called for each request, so a browser that reloads sees the latest values.
            folder: the run folder whose pictures are served; None: no pictures.

        Raises:
            UserError: the port is in use or may not be used.
        """
        try:
            super().__init__((HOST, port), partial(_Handler, page, folder))
        except (OSError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it must be from 0 to 65535"
            raise UserError(
                f"--port must be a free port of this machine, got {port} ({reason}). Omit --port"
            ) from error

    @property
    def address(self) -> str:
        """The address of the page."""
        return f"http://{HOST}:{self.server_port}/"


class _Handler(http.server.BaseHTTPRequestHandler):
    def __init__(self, page: Callable[[], str], folder: Path | None, *connection):
        self._page, self._folder = page, folder
        super().__init__(*connection)

    def do_GET(self) -> None:
        # A web page from elsewhere whose name resolves to this machine would send that name.
        if self.headers.get("Host", "").partition(":")[0] not in (HOST, "localhost"):
            return self._answer(403, "text/plain", b"The host must be 127.0.0.1 or localhost.\n")
        try:
            kind, content = self._content(self.path.partition("?")[0])
        except UserError as error:  # Someone has changed or removed a file of the run folder.
            return self._answer(500, "text/plain", f"{one_line(str(error))}\n".encode())
        status = 200 if content else 404
        self._answer(status, kind, content or b"There are only the report and its pictures.\n")

    do_HEAD = do_GET

    def _content(self, path: str) -> tuple[str, bytes]:
        """Returns the type and the content of a path. The content of an unknown path is empty."""
        if path == "/":
            return "text/html", self._page().encode()
        if self._folder is not None:
            # The path is only compared with the names of the pictures, so it cannot lead to another file.
            for name in read_pictures(self._folder):
                if path == f"/pictures/{name}.png":
                    return "image/png", read_run_file(picture_path(self._folder, name))
        return "text/plain", b""

    def _answer(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind if kind == "image/png" else f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Prints nothing: a browser reloads the page every few seconds."""


def serve(port: int, page: Callable[[], str], folder: Path | None, opens: bool) -> None:
    """Serves a page until a signal ends the program.

    Args:
        port: as in `ReportServer`.
        page: as in `ReportServer`. It is called once before, so that an error ends the program.
        folder: as in `ReportServer`.
        opens: whether to open the page in the browser.

    Raises:
        UserError: the page cannot be made, or the port cannot be used.
    """
    page()
    with ReportServer(port, page, folder) as server:
        print(f"{server.address} shows the report on this machine. End it with Ctrl-C", flush=True)
        if opens:
            webbrowser.open(server.address)
        server.serve_forever()
