"""The page in a browser without a window: no script error, all figures to be seen, tables that sort, nothing loaded."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from klqlit.reports.experiment import read_experiment
from klqlit.reports.page import write_report
from reports.folders import write_everything

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="there is no chromium: apt-get install chromium"),
]

BEFORE = """<script>
window.onerror = message => { document.documentElement.dataset.error = message; };
window.addEventListener("securitypolicyviolation", e => { document.documentElement.dataset.blocked = e.blockedURI; });
</script>"""

LOOK = """<script>
const box = one => {
  const { width, height, left, right } = one.getBoundingClientRect();
  return [width, height, left, right];
};
for (const details of document.querySelectorAll("details:not(.source)")) details.open = true;
const found = {
  figures: Object.fromEntries([...document.querySelectorAll("figure")].map(f => [f.id, {
    box: box(f.querySelector("svg")),
    font: Math.min(...[...f.querySelectorAll("text")].map(t => parseFloat(getComputedStyle(t).fontSize)
      * f.querySelector("svg").getBoundingClientRect().width / f.querySelector("svg").viewBox.baseVal.width)),
  }])),
  width: document.documentElement.scrollWidth,
  window: innerWidth,
  loaded: performance.getEntriesByType("resource").map(entry => entry.name),
  body: parseFloat(getComputedStyle(document.body).fontSize),
  small: [...document.querySelectorAll("main p, main td, main th, main li, main summary")]
    .map(one => parseFloat(getComputedStyle(one).fontSize)).reduce((a, b) => Math.min(a, b)),
};
document.body.dataset.found = JSON.stringify(found);
</script>"""

PLAY = """<script>
const log = {};
const table = document.querySelector("table.cards");
const prompts = () => [...table.tBodies[0].rows].map(row => row.cells[1].textContent.trim());
const scores = column => [...table.tBodies[0].rows].map(row => row.cells[column].dataset.value);
log.before = prompts();
table.tHead.rows[0].cells[3].click();
log.ascending = scores(3);
table.tHead.rows[0].cells[3].click();
log.descending = scores(3);
log.arrow = table.tHead.rows[0].cells[3].getAttribute("aria-sort");
const select = document.querySelector("select[data-sorts]");
select.value = ""; select.dispatchEvent(new Event("change"));
log.again = prompts();
const field = document.querySelector("input[data-filters]");
field.value = "ppo WINS"; field.dispatchEvent(new Event("input"));
log.shown = [...table.tBodies[0].rows].filter(row => !row.hidden).map(row => [...row.cells].at(-1).textContent);
log.count = document.querySelector("output[data-count]").textContent;
const token = document.querySelector(".token");
const color = () => getComputedStyle(token).backgroundColor;
log.colors = ["logratio", "value", "advantage"].map(name => {
  document.querySelector(".tokens > .by-" + name).checked = true; return color(); });
token.click();
log.hint = document.querySelector(".tokens .hint").textContent;
document.body.dataset.found = JSON.stringify(log);
</script>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    root = tmp_path_factory.mktemp("page")
    write_everything(root / "runs")
    return write_report(read_experiment([root / "runs"]), root / "out", ["runs"])


def browse(page: Path, profile: Path, *options: str) -> str:
    """What the browser prints."""
    command = [str(BROWSER), *FLAGS, f"--user-data-dir={profile}", *options, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def played(page: Path, folder: Path, script: str, *options: str) -> dict:
    """What a script of ours finds on the page; the page allows no script but its own, so that the rule is taken out."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', BEFORE, page.read_text(encoding="utf-8"))
    copy = folder / "index.html"
    copy.write_text(text.replace("</body>", f"{script}</body>"), encoding="utf-8")
    shown = browse(copy, folder / "profile", "--dump-dom", *options)
    assert "data-error" not in shown[: shown.index("<head")], shown[:300]
    return json.loads(html.unescape(re.search(r'data-found="([^"]*)"', shown)[1]))


@pytest.mark.parametrize("width", [1280, 360])
def test_every_figure_is_there_and_can_be_read(page, tmp_path, width):
    # The browser's own window is not narrower than 500: a frame is.
    found = (
        played(page, tmp_path, LOOK, f"--window-size={width},2000") if width > 500 else framed(page, tmp_path, width)
    )
    assert found["window"] == width
    assert set(found["figures"]) == {f"fig-{path.stem}" for path in (page.parent / "figures").glob("*.svg")}
    for name, figure in found["figures"].items():
        across, down, left, right = figure["box"]
        assert across > 250, name
        assert down > 120, name
        assert 0 <= left < right <= width, name
        assert figure["font"] >= 8.5, name
    assert found["loaded"] == []
    # Nothing sticks out: wide tables scroll in frames of their own.
    assert found["width"] <= width
    assert found["body"] >= 16
    assert found["small"] >= 12


def framed(page: Path, folder: Path, width: int) -> dict:
    """The same in a frame as narrow as a phone, which reports to its parent."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', BEFORE, page.read_text(encoding="utf-8"))
    report = LOOK.replace(
        "document.body.dataset.found = JSON.stringify(found)", 'parent.postMessage(JSON.stringify(found), "*")'
    )
    (folder / "inner.html").write_text(text.replace("</body>", f"{report}</body>"), encoding="utf-8")
    outer = folder / "outer.html"
    outer.write_text(
        "<body><script>window.onmessage = event => { document.body.dataset.found = event.data; };</script>"
        f'<iframe src="inner.html" style="width:{width}px;height:900px;border:0"></iframe></body>'
    )
    shown = browse(outer, folder / "profile", "--dump-dom", "--virtual-time-budget=20000")
    return json.loads(html.unescape(re.search(r'data-found="([^"]*)"', shown)[1]))


def test_tables_sort_and_filter_and_tokens_change_colour(page, tmp_path):
    log = played(page, tmp_path, PLAY)
    numbers = [float(value) for value in log["ascending"] if value]
    assert numbers == sorted(numbers)
    assert len(set(numbers)) > 3
    assert [float(value) for value in log["descending"] if value] == numbers[::-1]
    assert log["arrow"] == "descending"
    assert log["again"] == log["before"] != sorted(log["before"])
    assert log["shown"]
    assert all("PPO wins" in verdict for verdict in log["shown"])
    assert re.fullmatch(rf"{len(log['shown'])} of \d+ rows", log["count"])
    assert len(set(log["colors"])) == 3
    assert log["hint"].startswith("“ baby” log(π/π_b) 2.000 · V 0.000")


def test_the_page_s_own_script_runs_under_its_rule_and_no_other(page, tmp_path):
    shown = browse(page, tmp_path / "profile", "--dump-dom")
    assert re.search(r'<html[^>]*class="js"', shown)
    text = page.read_text(encoding="utf-8").replace("</body>", "<script>document.title = 'taken';</script></body>")
    (tmp_path / "index.html").write_text(text, encoding="utf-8")
    assert "<title>taken" not in browse(tmp_path / "index.html", tmp_path / "profile", "--dump-dom")


def test_it_can_be_read_without_a_script_and_printed(page, tmp_path):
    text = page.read_text(encoding="utf-8")
    still = tmp_path / "still.html"
    still.write_text(re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL), encoding="utf-8")
    shown = browse(still, tmp_path / "profile", "--dump-dom")
    assert 'class="js"' not in shown
    assert shown.count("<figure") == text.count("<figure")
    browse(page, tmp_path / "profile", "--no-pdf-header-footer", f"--print-to-pdf={tmp_path / 'page.pdf'}")
    pages = re.findall(rb"/Type\s*/Page\b", (tmp_path / "page.pdf").read_bytes())
    assert 5 <= len(pages) <= 40
