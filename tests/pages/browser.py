"""A headless Chromium, driven over the WebDriver protocol by the standard library alone."""

import base64
import contextlib
import json
import pathlib
import shutil
import subprocess
import tempfile
import time
import urllib.request

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
KEYS = {"Tab": "\ue004", "Enter": "\ue007", "Escape": "\ue00c", "Left": "\ue012", "Up": "\ue013", "Right": "\ue014", "Down": "\ue015"}


class Browser:
    def __init__(self, width=1280, height=900):
        self.profile = tempfile.TemporaryDirectory()
        self.driver = subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        port = next(line.split(" port ")[1].strip(" .\n") for line in self.driver.stdout if "successfully on port" in line)
        self.address = f"http://127.0.0.1:{port}/session"
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
                     "--disable-background-networking", "--force-prefers-reduced-motion",
                     f"--user-data-dir={self.profile.name}", f"--window-size={width},{height}"]
        wanted = {"browserName": "chrome", "goog:chromeOptions": {"binary": CHROMIUM, "args": arguments},
                  "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
        try:
            self.address += "/" + self.post("", capabilities={"alwaysMatch": wanted})["sessionId"]
        except BaseException:
            self.driver.kill()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):
            self.call("DELETE", "")
        self.driver.terminate()
        self.driver.wait()
        self.driver.stdout.close()
        self.profile.cleanup()

    def call(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"].splitlines()[0]) from None

    def post(self, path, **body):
        return self.call("POST", path, body)

    def devtools(self, command, **parameters):
        return self.post("/goog/cdp/execute", cmd=command, params=parameters)

    def open(self, path):
        self.post("/url", url=pathlib.Path(path).resolve().as_uri())

    def script(self, code, *arguments):
        return self.post("/execute/sync", script=code, args=list(arguments))

    def wait(self, condition, seconds=10):
        """Until the JavaScript expression is true."""
        end = time.monotonic() + seconds
        while not (value := self.script(f"return {condition}")):
            if time.monotonic() > end:
                raise AssertionError(f"after {seconds} s still not: {condition}")
            time.sleep(0.05)
        return value

    def element(self, selector):
        return next(iter(self.post("/element", using="css selector", value=selector).values()))

    def click(self, selector):
        self.post(f"/element/{self.element(selector)}/click")

    def hover(self, selector):
        origin = {"element-6066-11e4-a52e-4f735466cecf": self.element(selector)}
        move = {"type": "pointerMove", "duration": 0, "x": 0, "y": 0, "origin": origin}
        self.post("/actions", actions=[{"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": [move]}])

    def press(self, *names):
        actions = [{"type": kind, "value": KEYS[name]} for name in names for kind in ("keyDown", "keyUp")]
        self.post("/actions", actions=[{"type": "key", "id": "keyboard", "actions": actions}])

    def choose(self, selector, value):
        """An option of a select, as a person's choice: the page hears of it."""
        self.script("const select = document.querySelector(arguments[0]); select.value = arguments[1];"
                    "select.dispatchEvent(new Event('change', {bubbles: true}))", selector, value)

    def complaints(self):
        return [entry["message"] for entry in self.post("/se/log", type="browser") if entry["level"] in ("SEVERE", "WARNING")]

    def requests(self):
        """Every address that was asked for since the last call, but for what the browser serves itself."""
        messages = [json.loads(entry["message"])["message"] for entry in self.post("/se/log", type="performance")]
        sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        return [url for url in sent if not url.startswith(("file:", "data:", "chrome:", "about:"))]

    def theme(self, name):
        self.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def size(self, width, height, is_phone=False):
        self.devtools("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=is_phone)

    def picture(self, path):
        pathlib.Path(path).write_bytes(base64.b64decode(self.call("GET", "/screenshot")))
