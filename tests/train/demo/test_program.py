"""python -m train.demo: its options, who can reach it, and drawing a digit in the browser."""

import http.client
import json
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.makers.report_picture import CHROMIUM
from train.demo import __main__ as demo
from train.process.errors import UserError

ROOT = Path(__file__).parents[3]
needs_gradio = pytest.mark.skipif(find_spec("gradio") is None, reason='gradio is not installed (the extra "demo")')


@contextmanager
def serving(run, *options):
    """Yields the address of a running demo and its process."""
    words = [sys.executable, "-m", "train.demo", str(run), "--no-open", *options]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        try:
            line = program.stdout.readline()
            assert line.startswith("Open http://127.0.0.1:") and "only on this machine" in line, program.stderr.read()
            yield line.split()[1], program
        finally:
            program.kill()


def test_without_gradio_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'^the demo needs the package gradio, .* pip install -e "\.\[demo\]"$'):
        demo.main(["runs/none"])


def test_a_wrong_run_is_the_error_of_train_predict(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "find_spec", lambda name: sys.modules["pytest"].__spec__)
    with pytest.raises(UserError, match=r"none does not exist\. Pass a run folder, such as runs/vit-sample, weights,"):
        demo.main([str(tmp_path / "none")])
    with pytest.raises(UserError, match="--checkpoint must be left out for weights"):
        demo.main(["google/vit-base-patch16-224", "--checkpoint", "best"])


@pytest.mark.slow
@needs_gradio
def test_only_this_machine_is_answered_and_ctrl_c_ends_it(digits_run, default_handlers):
    with serving(digits_run) as (address, program):
        place = address.removeprefix("http://").rstrip("/")
        assert place.startswith("127.0.0.1:")

        def request(path, **headers):
            connection = http.client.HTTPConnection(place, timeout=20)
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            content = answer.read().decode()
            connection.close()
            return answer, content

        answer, page = request("/")
        assert answer.status == 200 and "default-src 'self'" in answer.headers["Content-Security-Policy"]
        assert "googleapis" not in page
        assert request("/", Host="evil.example")[0].status == 400
        assert request("/", Host="localhost")[0].status == 200
        config = json.loads(request("/config")[1])
        assert config["analytics_enabled"] is False
        port = place.partition(":")[2]
        words = [sys.executable, "-m", "train.demo", str(digits_run), "--no-open", "--port", port]
        second = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
        assert second.returncode == 2 and second.stderr.count("\n") == 1
        assert f"got 127.0.0.1 and {port} (Address already in use)" in second.stderr
        program.send_signal(signal.SIGINT)
        assert program.wait(20) == 130
        assert program.stderr.read().splitlines() == ["interrupted by Ctrl-C"]


@needs_gradio
def test_a_host_or_port_that_cannot_be_used_is_one_line():
    from train.demo.serve import is_loopback, listen

    assert is_loopback("127.0.0.1") and is_loopback("localhost") and is_loopback("::1")
    assert not is_loopback("0.0.0.0") and not is_loopback("example.org")
    with pytest.raises(UserError, match=r"^--port must be from 0 to 65535, got 70000\. Omit"):
        listen("127.0.0.1", 70000)
    with pytest.raises(
        UserError, match=r"^--host and --port must be .* got no host here and 0 \([^()]+\)\. Omit them$"
    ):
        listen("no host here", 0)
    with listen("127.0.0.1", 0) as listener:
        assert listener.family == socket.AF_INET and listener.getsockname()[0] == "127.0.0.1"


@pytest.mark.slow
@needs_gradio
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on the PATH")
@pytest.mark.parametrize(("width", "theme"), [(390, "dark"), (1200, "light")])
def test_a_drawn_1_is_answered_1(browser, digits_run, width, theme, default_handlers):
    with serving(digits_run) as (address, _):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=theme)
        said, elsewhere = [], []
        page.on("console", lambda message: said.extend([message.text] if message.type == "error" else []))
        page.on("pageerror", lambda error: said.append(str(error)))
        local = (address, "data:", "blob:")
        page.on("request", lambda request: elsewhere.extend([] if request.url.startswith(local) else [request.url]))
        page.goto(address)
        canvas = page.wait_for_selector(".drawing canvas")
        page.wait_for_selector(".drawing button:disabled")  # the script of the canvas has run
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.15 * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + 0.56 * box["width"], box["y"] + 0.7 * box["height"], steps=10)
        page.mouse.up()
        page.wait_for_selector(".classes")
        assert page.inner_text(".classes li:first-child .name") == "1"
        assert len(page.query_selector_all(".classes li")) == 5
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.click("text=Clear")
        page.wait_for_selector("text=The answer appears here")
        assert not page.query_selector(".classes") and (said, elsewhere) == ([], [])
        page.close()
