"""python -m train.report RUN --serve: what it serves, and that it serves nothing else."""

import http.client
import json
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from pictures import DIGITS, a_grid, a_run_folder

from train.process.errors import UserError
from train.report.__main__ import main as report
from train.report.comparison import comparison
from train.report.page import run_page
from train.report.pictures import write_pictures
from train.report.serve import ReportServer


@pytest.fixture
def folder(tmp_path):
    folder = a_run_folder(tmp_path / "run")
    write_pictures(folder, {"cells": a_grid(1, 2, 4, 4)}, DIGITS)
    return folder


@contextmanager
def serving(page, folder):
    """Yields a function that requests a path and returns the status, the type and the content."""
    with ReportServer(0, page, folder) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()

        def request(path, method="GET", **headers):
            connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
            return answer.status, answer.headers["Content-Type"], content

        try:
            yield request
        finally:
            server.shutdown()
            thread.join()


def test_the_page_is_the_report_of_this_moment_and_its_pictures_are_files(folder):
    with serving(partial(run_page, folder), folder) as request:
        assert request("/") == (200, "text/html; charset=utf-8", run_page(folder).encode())
        picture = (folder / "pictures" / "cells.png").read_bytes()
        assert request("/pictures/cells.png") == (200, "image/png", picture)
        assert request("/", "HEAD") == (200, "text/html; charset=utf-8", b"")
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": 17, "split": "train", "loss": 0.5}) + "\n")
        content = request("/")[2]
        assert b"Not finished: step 17 of 400" in content and b"http-equiv=refresh" in content
        assert not (folder / "report.html").exists()


@pytest.mark.parametrize(
    "path",
    [
        *("/config.json", "/../config.json", "/pictures/../config.json", "/pictures/pictures.json", "/pictures/"),
        *("/pictures/..%2fconfig.json", "/%2e%2e/config.json", "//etc/passwd", "/pictures//etc/passwd", "/report.html"),
        *("/pictures/cells.png/", "/pictures/cells", "/pictures/other.png", "config.json", "/./", "//["),
    ],
)
def test_no_path_leads_to_another_file(folder, path):
    with serving(partial(run_page, folder), folder) as request:
        status, kind, content = request(path)
        assert (status, kind) == (404, "text/plain; charset=utf-8") and len(content) < 100


def test_a_picture_that_is_a_link_is_refused(folder, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (folder / "pictures" / "cells.png").unlink()
    (folder / "pictures" / "cells.png").symlink_to(tmp_path / "secret")
    with serving(partial(run_page, folder), folder) as request:
        status, _, content = request("/pictures/cells.png")
        assert status == 500 and b"must be a regular file" in content and content.count(b"\n") == 1


def test_only_this_machine_can_connect(folder):
    with ReportServer(0, partial(run_page, folder), folder) as server:
        assert server.socket.getsockname()[0] == "127.0.0.1"
        assert server.address == f"http://127.0.0.1:{server.server_port}/"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", ""])
def test_a_page_from_elsewhere_cannot_read_the_report(folder, host):
    """A web page could resolve its own name to 127.0.0.1, and then read an answer for that name."""
    with serving(partial(run_page, folder), folder) as request:
        for path in ("/", "/pictures/cells.png"):
            assert request(path, Host=host)[0] == 403
        assert request("/", Host="localhost")[0] == 200


def test_a_damaged_file_is_one_line_in_the_browser_and_the_next_request_works(folder):
    content = (folder / "config.json").read_text()
    with serving(partial(run_page, folder), folder) as request:
        (folder / "config.json").write_text("{")
        status, kind, said = request("/")
        assert (status, kind) == (500, "text/plain; charset=utf-8")
        assert b"config.json must be valid JSON" in said and said.count(b"\n") == 1
        (folder / "config.json").write_text(content)
        assert request("/")[0] == 200


def test_a_comparison_is_served_without_pictures(folder):
    with serving(partial(comparison, [folder, folder]), None) as request:
        assert request("/")[2] == comparison([folder, folder]).encode()
        assert request("/pictures/cells.png")[0] == 404


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--port", "8000"], "--port must be used with --serve"),
        (["--no-open"], "--no-open must be used with --serve"),
        (["--serve", "--checkpoint", "best"], "--checkpoint must be left out with --serve"),
        (["--serve", "--out", "x.html"], "--out must be left out with --serve"),
        (["--serve", "--no-open", "--port", "70000"], "--port must be a free port of this machine, got 70000"),
    ],
)
def test_options_that_do_not_fit_are_one_line(folder, options, message):
    with pytest.raises(UserError, match=message):
        report([str(folder), *options])


def test_a_port_in_use_is_one_line(folder):
    with (
        ReportServer(0, partial(run_page, folder), folder) as server,
        pytest.raises(UserError, match=rf"got {server.server_port} \(.*in use\)"),
    ):
        report([str(folder), "--serve", "--no-open", "--port", str(server.server_port)])


@pytest.mark.slow
def test_the_program_serves_until_ctrl_c(folder, default_handlers):
    words = [sys.executable, "-m", "train.report", str(folder), "--serve", "--no-open"]
    root = Path(__file__).parents[3]
    with subprocess.Popen(words, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        address = program.stdout.readline().split()[0]
        connection = http.client.HTTPConnection(address.removeprefix("http://").rstrip("/"), timeout=20)
        connection.request("GET", "/")
        assert connection.getresponse().read() == run_page(folder).encode()
        connection.close()
        program.send_signal(signal.SIGINT)
        try:
            assert program.wait(20) == 130
        finally:
            program.kill()
        assert program.stderr.read().splitlines() == ["interrupted by Ctrl-C"]
