"""A headless Chromium, spoken to in its own protocol: what a page asks for, what it complains of, what it shows."""

import base64
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websocket import create_connection

PROGRAM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
OPTIONS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-port=0",
           "--remote-allow-origins=*", "--no-first-run", "--disable-background-networking", "--disable-component-update")  # fmt: skip


class Browser:
    """One tab. `asked` are the addresses that it asked for, `problems` what its console and its pages complained of."""

    def __init__(self, address: str) -> None:
        self.socket, self.count = create_connection(address, timeout=120), 0
        self.asked: list[str] = []
        self.problems: list[str] = []
        target = self.do("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.do("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.do(f"{domain}.enable")

    def do(self, method: str, **values: Any) -> dict[str, Any]:
        """Send a command and return its result; what happens meanwhile is noted."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": values}
        self.socket.send(json.dumps(message | ({"sessionId": self.session} if hasattr(self, "session") else {})))
        while True:
            reply = json.loads(self.socket.recv())
            if reply.get("id") == self.count:
                assert "error" not in reply, f"{method}: {reply['error']}"
                return reply["result"]
            self._note(reply)

    def _note(self, event: dict[str, Any]) -> None:
        values = event.get("params", {})
        match event.get("method"):
            case "Network.requestWillBeSent":
                self.asked.append(values["request"]["url"])
            case "Runtime.exceptionThrown":
                self.problems.append(json.dumps(values["exceptionDetails"])[:500])
            case "Log.entryAdded" if values["entry"]["level"] == "error":
                self.problems.append(f"{values['entry']['text']} {values['entry'].get('url', '')}")
            case "Runtime.consoleAPICalled" if values["type"] == "error":
                self.problems.append(json.dumps(values["args"])[:500])
            case "Page.javascriptDialogOpening":
                self.problems.append(f"a dialog: {values['message']}")
                self.count += 1
                close = {"id": self.count, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}}
                self.socket.send(json.dumps(close | {"sessionId": self.session}))

    def open(self, address: str, width: int = 1280, height: int = 900) -> None:
        """Open a page at a size of the window."""
        mobile = {"mobile": width < 600, "deviceScaleFactor": 1}
        self.do("Emulation.setDeviceMetricsOverride", width=width, height=height, **mobile)
        self.do("Page.navigate", url=address)

    def run(self, script: str) -> Any:
        """Return what a JavaScript expression is worth in the page."""
        reply = self.do("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in reply, reply["exceptionDetails"]
        return reply["result"].get("value")

    def wait(self, script: str, seconds: float = 60) -> Any:
        """Return the first value of an expression that is not empty."""
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"not within {seconds} seconds: {script}\n{self.problems}"
            time.sleep(0.1)
        return value

    def write(self, text: str) -> None:
        """Type a text into what has the focus."""
        self.do("Input.insertText", text=text)

    def picture(self, path: Path) -> None:
        """Keep a picture of what the window shows."""
        path.write_bytes(base64.b64decode(self.do("Page.captureScreenshot")["data"]))


@contextmanager
def open_browser(profile: Path) -> Iterator[Browser]:
    """Give a browser with an empty profile, and end it."""
    log = profile / "log.txt"
    profile.mkdir(parents=True)
    with log.open("w") as handle, subprocess.Popen(
        [PROGRAM, *OPTIONS, f"--user-data-dir={profile}", "about:blank"], stdout=handle, stderr=handle
    ) as process:  # fmt: skip
        try:
            end = time.monotonic() + 60
            while not (found := re.search(r"ws://\S+", log.read_text())):
                assert time.monotonic() < end and process.poll() is None, log.read_text()
                time.sleep(0.1)
            yield Browser(found[0])
        finally:
            process.terminate()
