"""The browser's view of a store.

Experiment, run with its report, and registered models with their cards.

Needs Chromium (Debian: ``apt-get install chromium``) and, in this environment, ``pip install
playwright``; not its own browsers. ``UI_SCREENSHOTS=FOLDER pytest -m ui`` keeps a picture of every
page."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.ui

ROOT = Path(__file__).resolve().parents[2]
NAMES = {"vdj": "vdj-twostep-em", "copynumber": "copynumber-kpsc"}
_WAIT = 60_000  # milliseconds for a page on a busy machine


@dataclass(frozen=True)
class Site:
    """A server over a store with a champion of each of two families."""

    url: str
    runs: dict[str, dict[str, Any]]  # family -> run.json
    figures: dict[str, dict[str, Any]]  # family -> metrics.json of the evaluation
    experiment: str


def _environment(folder: Path) -> dict[str, str]:
    inherited = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("MLFLOW_", "SEQFOUNDRY_"))
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    variables = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "PYTHONPATH": str(ROOT / "src"),
        "PATH": path,
    }
    return inherited | variables | {"MLFLOW_DISABLE_TELEMETRY": "true", "CUDA_VISIBLE_DEVICES": ""}


def _seqfoundry(folder: Path, *words: str) -> None:
    command = [sys.executable, "-m", "seqfoundry", *words]
    process = subprocess.run(
        command, cwd=ROOT, env=_environment(folder), capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr[-2000:]


def _champion(folder: Path, family: str) -> None:
    params, made = str(ROOT / "params" / family / "smoke.yaml"), folder / family
    data = str(made / "data")
    _seqfoundry(folder, "simulate", family, "--params", params, "--out", data)
    _seqfoundry(
        folder, "train", family, "--params", params, "--data", data, "--out", str(made / "train")
    )
    _seqfoundry(folder, "register", family, "--run", str(made / "train"))
    evaluated = str(made / "evaluate")  # after registering, as users do: the card is renewed
    _seqfoundry(
        folder,
        "evaluate",
        family,
        "--model",
        str(made / "train"),
        "--data",
        data,
        "--out",
        evaluated,
    )
    _seqfoundry(folder, "promote", NAMES[family])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    _chromium()
    folder = tmp_path_factory.mktemp("site")
    for family in NAMES:
        _champion(folder, family)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command = [
        sys.executable,
        "-m",
        "mlflow",
        *words,
        "--backend-store-uri",
        f"sqlite:///{folder / 'mlflow.db'}",
    ]
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(
            command,
            env=_environment(folder),
            stdout=log,
            stderr=log,
            cwd=folder,
            start_new_session=True,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_for(f"{url}/health", server)
            runs, figures = (
                {family: _read(folder / family / name) for family in NAMES} for name in _RECORDS
            )
            yield Site(url, runs, figures, _experiment(url))
        finally:
            os.killpg(server.pid, 15)
            server.wait(30)


_RECORDS = ("train/run.json", "evaluate/metrics.json")


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def _experiment(url: str) -> str:
    address = f"{url}/api/2.0/mlflow/experiments/get-by-name?experiment_name=seqfoundry"
    with urllib.request.urlopen(address, timeout=30) as answer:
        return str(json.load(answer)["experiment"]["experiment_id"])


def _wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"{url}: no answer")


def _chromium() -> str:
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if not path:
        pytest.skip("needs Chromium: apt-get install chromium")
    return path


class Browser:
    """A page of the site, with pictures of what was seen."""

    def __init__(self, page: Any, url: str) -> None:
        self.page, self._url = page, url
        page.set_default_timeout(_WAIT)

    def open(self, path: str) -> None:
        self.page.goto("about:blank")  # else a change of the fragment alone does not load
        self.page.goto(f"{self._url}/#{path}")

    def sees(self, *texts: str) -> None:
        """Wait until every text stands somewhere on the page."""
        for text in texts:
            self.page.get_by_text(text).first.wait_for(state="visible")

    def picture(self, name: str) -> None:
        if folder := os.environ.get("UI_SCREENSHOTS"):
            self.page.screenshot(path=str(Path(folder) / f"{name}.png"))


@pytest.fixture
def browser(site: Site) -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium has none for root
        chromium = playwright.chromium.launch(executable_path=_chromium(), args=sandbox)
        page = chromium.new_page(viewport={"width": 1700, "height": 1300})
        yield Browser(page, site.url)
        chromium.close()


def test_the_experiment_tells_families_apart(site: Site, browser: Browser) -> None:
    browser.open(f"/experiments/{site.experiment}/runs")
    browser.sees(
        "train-vdj", "train-copynumber", "One run per training, of all families", "2 matching runs"
    )
    browser.picture("experiment")
    search = browser.page.get_by_placeholder("metrics.rmse").first
    search.fill('tags.family = "vdj"')
    search.press("Enter")
    browser.sees("1 matching run")
    assert browser.page.get_by_text("train-vdj", exact=True).count()
    assert not browser.page.get_by_text("train-copynumber", exact=True).count()
    browser.picture("experiment-of-one-family")


def test_runs_are_grouped_by_family(site: Site, browser: Browser) -> None:
    browser.open(f"/experiments/{site.experiment}/runs")
    browser.sees("train-vdj")
    browser.page.get_by_role("button", name="Group by").click()
    browser.page.get_by_role(
        "menuitemcheckbox", name="family", exact=True
    ).first.click()  # tags come before settings
    browser.sees("Group by: family", *(f"Group: {family}" for family in NAMES))
    browser.picture("grouped")


@pytest.mark.parametrize("family", NAMES)
def test_a_run_shows_where_it_is_from(site: Site, browser: Browser, family: str) -> None:
    run = site.runs[family]
    browser.open(f"/experiments/{site.experiment}/runs/{run['run_id']}")
    browser.sees(
        f"train-{family}",
        "Finished",
        run["data.md5"],
        "evaluate/report.html",
        "passed: ",
        NAMES[family],
    )
    browser.picture(f"run-{family}")


@pytest.mark.parametrize(
    ("family", "metric"), [("vdj", "train.loss"), ("copynumber", "train.loss")]
)
def test_a_run_has_charts_by_epoch(site: Site, browser: Browser, family: str, metric: str) -> None:
    browser.open(
        f"/experiments/{site.experiment}/runs/{site.runs[family]['run_id']}/model-metrics"
    )
    browser.page.get_by_placeholder("Search metric charts").fill(metric)
    browser.sees(metric, "Step")  # one of a single value is a bar, without steps
    browser.picture(f"metrics-{family}")


@pytest.mark.parametrize("family", NAMES)
def test_a_run_shows_report_and_plots_inline(site: Site, browser: Browser, family: str) -> None:
    browser.open(f"/experiments/{site.experiment}/runs/{site.runs[family]['run_id']}/artifacts")
    browser.page.get_by_text("evaluate", exact=True).click()
    browser.page.get_by_text("report.html", exact=True).click()
    report = browser.page.frame_locator("iframe")
    heading = {"vdj": "Results", "copynumber": "Segments against simulated truth"}[family]
    report.get_by_role("heading", name=heading).wait_for(state="attached")
    pictures = report.locator("img")
    assert pictures.count() >= 2
    for i in range(pictures.count()):  # drawn, not only named: they travel inside the file
        assert pictures.nth(i).evaluate("image => image.complete && image.naturalWidth > 100")
    browser.picture(f"report-{family}")
    browser.page.get_by_text("plots", exact=True).last.click()  # those of training
    browser.page.get_by_text("history.png", exact=True).click()
    plot = browser.page.locator("img[src^='blob:']").first
    plot.wait_for(state="visible")
    assert plot.evaluate("image => image.naturalWidth") > 100
    browser.picture(f"plot-{family}")


@pytest.mark.parametrize("family", NAMES)
def test_a_model_says_what_it_is(site: Site, browser: Browser, family: str) -> None:
    browser.open(f"/models/{NAMES[family]}")
    browser.sees(
        "Use the version with the alias",
        f"models:/{NAMES[family]}@champion",
        "Version 1",
        "@ champion",
    )
    browser.sees("gates", "data.md5", "git.commit")
    browser.picture(f"model-{family}")


@pytest.mark.parametrize("family", NAMES)
def test_a_version_has_its_card_tags_and_alias(site: Site, browser: Browser, family: str) -> None:
    run, figures = site.runs[family], site.figures[family]
    headline = {"vdj": "test.below_null", "copynumber": "test.segment_f1"}[family]
    browser.open(f"/models/{NAMES[family]}/versions/1")
    browser.sees("@ champion", "How good it is", "Limits", "How to load it")
    browser.sees(
        f"{headline} {figures[headline]:.4f}",
        run["run_id"],
        run["git.commit"][:12],
        f"/{NAMES[family]}/1",
    )
    tags = browser.page.locator("table").filter(has_text="data.md5")
    for text in (
        "data.md5",
        run["data.md5"],
        "git.commit",
        run["git.commit"],
        "gates",
        "passed: ",
    ):
        assert tags.get_by_text(text).count(), text
    browser.picture(f"version-{family}")
    link = browser.page.get_by_role(
        "link", name=f"train-{family}"
    ).last  # the one in the card, which opens a page
    browser.page.goto(link.evaluate("link => link.href"))
    browser.sees(run["run_id"], run["settings.sha256"][:12])
