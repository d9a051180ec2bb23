"""The page in a real browser: it fits a phone and a desk, and its words can be read in both colour schemes."""

import json
import re
import shutil
import subprocess
from html import escape, unescape

import pytest

from finetune.report.page import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--virtual-time-budget=5000", "--dump-dom"),
]

# Of every text the contrast of WCAG 2.1 between its colour and what lies behind it. Colours are painted on a canvas,
# which turns whatever notation the browser reports into sRGB and lays translucent ones over those behind.
MEASURE = """
const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
function paint(colours) {
  for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
  return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map(level => level / 255);
}
function luminance(rgb) {
  const [r, g, b] = rgb.map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
let worst = {contrast: 99};
for (const element of document.body.querySelectorAll("*")) {
  const own = [...element.childNodes].filter(node => node.nodeType === 3).map(node => node.data).join("").trim();
  if (!own) continue;
  const behind = [];
  for (let it = element; it; it = it.parentElement) behind.unshift(getComputedStyle(it).backgroundColor);
  const style = getComputedStyle(element);
  const ink = element.namespaceURI.endsWith("svg") ? style.fill : style.color;
  const [light, dark] = [luminance(paint(behind)), luminance(paint([...behind, ink]))].sort((a, b) => b - a);
  const contrast = (light + 0.05) / (dark + 0.05);
  if (contrast < worst.contrast) worst = {contrast, text: own, tag: element.tagName, class: element.className};
}
parent.document.body.dataset.found = JSON.stringify({
  worst,
  window: innerWidth,
  page: document.documentElement.scrollWidth,
  paper: getComputedStyle(document.body).backgroundColor,
  images: document.images.length,
  broken: [...document.images].filter(image => !image.naturalWidth).length,
});
"""


def measure(page, folder, width, is_dark):
    """What the browser makes of the page in a frame, as its windows are never narrower than 500 pixels.

    The page's policy forbids scripts, so the copy that is measured goes without it.
    """
    html = page.read_text(encoding="utf-8")
    policy = next(line for line in html.splitlines() if "Content-Security-Policy" in line)
    html = html.replace(policy, "").replace("</body>", f"<script>onload = () => {{{MEASURE}}}</script></body>")
    frame = f'<iframe style="width: {width}px; height: 900px; border: 0" srcdoc="{escape(html)}"></iframe>'
    outer = folder / "outer.html"
    outer.write_text(f'<!DOCTYPE html><meta charset="utf-8"><meta name="color-scheme" content="light dark">{frame}')
    scheme = f"--blink-settings=preferredColorScheme={0 if is_dark else 1}"
    done = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={folder}/profile", scheme, outer.as_uri()],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(unescape(re.search(r'data-found="([^"]*)"', done.stdout)[1]))


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("is_dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("kind", ["label_run", "caption_run"])
def test_page_fits_the_window_and_can_be_read_whatever_its_words(kind, width, is_dark, request, tmp_path):
    run = request.getfixturevalue(kind)
    predictions = (run / "predictions.csv").read_text()
    (run / "predictions.csv").write_text(re.sub("ant|picture number 3", "W" * 200, predictions))
    found = measure(write_report(run), tmp_path, width, is_dark)
    assert found["window"] == width
    assert found["page"] <= width
    assert found["paper"] == ("rgb(15, 20, 25)" if is_dark else "rgb(255, 255, 255)")
    assert found["images"] > 0
    assert found["broken"] == 0
    assert found["worst"]["contrast"] >= 4.5, found["worst"]
