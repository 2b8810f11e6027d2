"""A headless Chromium, steered by the WebDriver protocol of chromedriver."""

import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")


@contextmanager
def driver_port() -> Iterator[str]:
    """Yield the port of a chromedriver that runs as long as the block."""
    command = [str(DRIVER), "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        started = (re.search(r"started successfully on port (\d+)", line) for line in driver.stdout)
        try:
            yield next(found[1] for found in started if found)
        finally:
            driver.terminate()


class Browser:
    """A window of a headless browser, by the WebDriver protocol."""

    def __init__(self, port: str, **options: Any) -> None:
        """Open a window; `options` are those of chromedriver."""
        self._url = f"http://127.0.0.1:{port}"
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1000,800"]
        chrome = {"binary": BROWSER, "args": arguments, **options}
        wanted = {"alwaysMatch": {"goog:chromeOptions": chrome}}
        session = self._ask("POST", "/session", {"capabilities": wanted})
        self._url += f"/session/{session['sessionId']}"

    def _ask(self, method: str, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self._url}{path}", data, method=method)
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["value"]

    def open(self, page: Path, **state: str) -> None:
        """Open a file with a state in its address."""
        self._ask("POST", "/url", {"url": "about:blank"})
        self._ask("POST", "/url", {"url": f"{page.as_uri()}#{urlencode(state)}"})

    def run(self, script: str) -> Any:
        """Run a script after the next frame and return what it returns."""
        wrapped = f"const done = arguments[0]; setTimeout(() => done((() => {{{script}}})()), 200)"
        return self._ask("POST", "/execute/async", {"script": wrapped, "args": []})

    def click(self, selector: str) -> None:
        """Click the first element that a CSS selector finds."""
        by = {"using": "css selector", "value": selector}
        (element,) = self._ask("POST", "/element", by).values()
        self._ask("POST", f"/element/{element}/click", {})

    def close(self) -> None:
        """Close the window."""
        self._ask("DELETE", "")
