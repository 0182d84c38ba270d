"""Serves a Gradio page: on this machine only, unless the user names another host."""

import ipaddress
import socket
import threading
import webbrowser
from collections.abc import Awaitable, Callable
from typing import Any

import gradio as gr  # pyright: ignore[reportMissingImports]
import uvicorn  # pyright: ignore[reportMissingImports]
from fastapi import FastAPI  # pyright: ignore[reportMissingImports]
from starlette.middleware.trustedhost import TrustedHostMiddleware  # pyright: ignore[reportMissingImports]

from train.demo.page import mount_options
from train.process.errors import RunStopped, UserError

# The browser loads nothing from other sites for the page, whatever Gradio's files name.
_POLICY = (
    b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    b"img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    b"frame-ancestors 'none'"
)


def listen(host: str, port: int) -> socket.socket:
    """Starts to listen. `port` 0 chooses a free port.

    Raises:
        UserError: the host is not one of this machine, or the port is in use or may not be used.
    """
    if not 0 <= port < 2**16:
        raise UserError(f"--port must be from 0 to 65535, got {port}. Omit --port")
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        reason = str(error.strerror).partition(" (while")[0]  # Python adds the address, which is in the message below.
        raise UserError(
            f"--host and --port must be an address and a free port of this machine, got {host} and {port} ({reason}). "
            "Omit them"
        ) from error


def serve(page: gr.Blocks, listener: socket.socket, host: str, opens: bool) -> None:
    """Serves a page until a signal ends the program.

    Args:
        page: the page.
        listener: the socket from `listen`.
        host: the host that the user named. If it is loopback, only requests for this machine's names are answered.
        opens: whether to open the page in the browser.

    Raises:
        RunStopped: the server ended.
    """
    app = gr.mount_gradio_app(FastAPI(), page, path="/", **mount_options())
    if is_loopback(host):
        # A web page from elsewhere whose name resolves to this machine would send that name.
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", host.strip("[]")])
    app.add_middleware(_Policy)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none"))
    # In another thread, uvicorn does not replace the handlers of signals, which end the program at once.
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        thread.join(0.05)
    port = listener.getsockname()[1]
    address = f"http://{own_name(host)}:{port}/"
    if is_loopback(host):
        print(f"Open {address} (only on this machine). Press Ctrl-C to stop", flush=True)
    else:
        others = f"Other machines can open port {port} of this machine, without a password"
        print(f"Open {address} on this machine. {others}. Press Ctrl-C to stop", flush=True)
    if opens:
        webbrowser.open(address)
    thread.join()
    raise RunStopped("the server ended. Run the command again")


def own_name(host: str) -> str:
    """Returns the name of the host for an address that this machine's browser can open."""
    address = _address(host)
    if address is not None and address.is_unspecified:  # all interfaces
        host = "::1" if address.version == 6 else "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine can connect to the host."""
    address = _address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


class _Policy:
    """Adds the policy to each answer (https://www.w3.org/TR/CSP3)."""

    def __init__(self, app: Callable[..., Awaitable[None]]):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", _POLICY)]
            await send(message)

        await self.app(scope, receive, send_with_policy)
