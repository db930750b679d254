"""The report's page in a real browser: it fetches nothing, fits the window, and names everything."""

from __future__ import annotations

import functools
import html
import http.server
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from cnn_jobs.report.chapters import Facts, build_document
from cnn_jobs.report.formats import html as page_of
from cnn_jobs.report.groups import group_runs
from tests.helpers.made_runs import files_of, made_run

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed"),
]
NAMES = ("task2", "task3-arch1", "task3-arch2", "task3d-batchnorm", "task3d-plain", "task3c-avgpool", "task3e")
# Runs in the page after it has loaded; leaves its findings in the body's data-found.
PROBE = """
<script>
addEventListener("load", () => {
  const wide = document.documentElement.clientWidth;
  const inside = (e) => e.closest(".scroll, .skip");
  const over = [...document.body.querySelectorAll("*")].filter(
    (e) => !inside(e) && e.getBoundingClientRect().right > wide + 1);
  const fetched = performance.getEntriesByType("resource").filter((e) => !e.name.startsWith("data:"));
  const names = [...document.querySelectorAll("img")].filter((e) => !e.alt || !e.naturalWidth);
  const heads = [...document.querySelectorAll("table")].filter((e) => !e.caption || !e.querySelector("th[scope=col]"));
  document.body.dataset.found = JSON.stringify({
    over: over.length, scroll: document.documentElement.scrollWidth - wide, fetched: fetched.map((e) => e.name),
    unnamed: names.length, headless: heads.length, buttons: document.querySelectorAll("thead button").length,
    pictures: document.images.length, tables: document.querySelectorAll("table").length,
    headings: document.querySelectorAll("h1, h2, h3").length,
  });
});
</script>
"""


def made_page() -> str:
    runs = [
        made_run(name, seed, mistakes=files_of(0)["mistakes.png"], name="long" * 80)
        for name in NAMES
        for seed in range(3)
    ]
    sections, aside = group_runs([*runs, made_run("task2", 7, status="FAILED")])
    facts = Facts("an experiment", "http://127.0.0.1:5000", "2026-11-24", "all", 2, "0.1.0")
    return page_of(build_document(facts, sections, aside))


class Counting(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and records every requested path."""

    requested: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.requested.append(self.path)
        super().do_GET()

    def log_message(self, *_: object) -> None:
        """Silent."""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    Counting.requested.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Counting, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield tmp_path, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def chromium(tmp_path: Path, *arguments: str) -> str:
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("width", [1280, 500])
def test_page_fetches_nothing_and_fits_the_window(served: tuple[Path, str], width: int) -> None:
    folder, url = served
    page = made_page()
    # The probe is a foreign script, which the policy would block. Everything else is as shipped.
    probed = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page).replace("</body>", PROBE + "</body>")
    (folder / "page.html").write_text(probed)
    arguments = (f"--window-size={width},900", "--virtual-time-budget=5000", "--dump-dom", f"{url}/page.html")
    shown = chromium(folder, *arguments)
    found = re.search(r'data-found="([^"]*)"', shown)
    assert found, shown[-500:]
    facts = json.loads(html.unescape(found.group(1)))
    assert (facts["over"], facts["unnamed"], facts["headless"], facts["fetched"]) == (0, 0, 0, [])
    assert facts["scroll"] <= 0
    assert facts["pictures"] == page.count("<img ")
    assert facts["pictures"] >= 2 * len(NAMES) + 3
    assert facts["tables"] == page.count("<table ") >= 3 * len(NAMES)
    assert facts["headings"] >= 15
    assert facts["buttons"] > 50
    assert Counting.requested == ["/page.html"]


def test_policy_blocks_foreign_scripts_and_pictures(served: tuple[Path, str]) -> None:
    folder, url = served
    foreign = f'<img src="{url}/spy.png"><script>document.body.dataset.found = "1"</script></body>'
    (folder / "page.html").write_text(made_page().replace("</body>", foreign))
    shown = chromium(folder, "--virtual-time-budget=5000", "--dump-dom", f"{url}/page.html")
    assert "data-found" not in shown
    assert Counting.requested == ["/page.html"]
    # Its own script is allowed: it made the table heads buttons.
    assert shown.count("<button") > 50


def test_page_can_be_printed(served: tuple[Path, str]) -> None:
    folder, _ = served
    (folder / "page.html").write_text(made_page())
    target = folder / "page.pdf"
    chromium(folder, f"--print-to-pdf={target}", "--no-pdf-header-footer", f"file://{folder}/page.html")
    content = target.read_bytes()
    assert content.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", content)) >= 8
