"""The page: its files, what they may load, and, where there is a Chromium, that it loads without an error."""

import re
import shutil
import subprocess

import httpx2
import pytest

from rrm_jax.serving.page import _HOME, FILES
from tests.serving.common import NAME, live

pytestmark = pytest.mark.usefixtures("quick_compiles")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def test_the_page_and_all_that_it_names_is_there_and_loads_nothing_from_elsewhere(url):
    page = httpx2.get(url + "/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]
    named = re.findall(r'(?:src|href)="(page/[^"]+)"', page.text)
    for name in ("page.js", "events.js", "pictures.js"):
        named += [f"page/{found}" for found in re.findall(r'from "\./([^"]+)"', (_HOME / name).read_text())]
    assert {name.removeprefix("page/") for name in named} == FILES.keys() - {"index.html"}
    for name in named:
        assert httpx2.get(f"{url}/{name}").status_code == 200
    assert "http://" not in page.text
    assert "https://" not in page.text
    for name in ("app.py", "..%2fapp.py", "%2e%2e/app.py", ""):
        assert httpx2.get(f"{url}/page/{name}").status_code in (404, 422)


def test_texts_never_become_markup():
    for name in FILES:
        text = (_HOME / name).read_text()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", text), name
        assert not re.search(r"\son[a-z]+=|style=", text), name  # the policy would stop them


def test_a_browser_gets_the_page_without_a_token_and_is_told_that_one_is_asked_for(home):
    with live(home.service(), token="secret") as url:
        assert httpx2.get(url + "/").status_code == 200
        assert httpx2.get(url + "/page/about.json").json() == {"model": NAME, "token": True}
        assert httpx2.get(url + "/v1/models").status_code == 401


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_browser_runs_it(url, tmp_path):
    """What only the script can have made is there: two responses, and the model's name."""
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --virtual-time-budget=5000 --enable-logging=stderr"
    command = [str(CHROMIUM), *flags.split(), f"--user-data-dir={tmp_path}", "--dump-dom", url + "/"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert 'id="response-1"' in ran.stdout
    assert "Response B" in ran.stdout
    assert re.search(rf'<span id="model">{NAME}</span>', ran.stdout)
    assert "CONSOLE" not in ran.stderr, ran.stderr[-2000:]
