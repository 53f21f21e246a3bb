"""A page in headless Chromium, at the width of a screen, and what is to be seen there."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# A window is not narrower than 500 pixels, a frame may be. The page runs no scripts; the one around it looks into it.
AROUND = """<!doctype html><body style="margin:0"><pre id="seen"></pre>
<iframe id="frame" style="border:0;width:%dpx;height:900px" srcdoc="%s"></iframe>
<script>
const frame = document.getElementById("frame");
frame.onload = () => {
  const page = frame.contentDocument, view = frame.contentWindow;
  document.getElementById("seen").textContent = JSON.stringify((%s)(page, view));
};
</script>"""


def seen(page: str, width: int, script: str, folder: Path) -> Any:
    """What the script, a function of (document, window), gives in a frame of that width.

    folder: for Chromium's own files.
    """
    around = folder / "around.html"
    around.write_text(AROUND % (width, html.escape(page), script))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'chromium'}"]
    command += ["--window-size=1600,1000", "--virtual-time-budget=10000", "--dump-dom", around.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'<pre id="seen">(.+?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr
    return json.loads(html.unescape(found[1]))
