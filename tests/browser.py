"""A headless Chromium, which the machine must have: Debian's, Chrome's or playwright's own name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium() -> str:
    """Find the browser: CHROMIUM in the environment, or one of NAMES on the path.

    Raises:
        FileNotFoundError: if there is none; pages cannot be tested without a browser.
    """
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if not found:
        raise FileNotFoundError(
            "no Chromium on this machine, in which the pages are tested. Install one (Debian: "
            "apt-get install chromium), or name its program in CHROMIUM"
        )
    return found


@contextmanager
def headless() -> Iterator[Browser]:
    """Start the browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        # root may not use the sandbox, and a container's /dev/shm is small
        options = ["--no-sandbox", "--disable-dev-shm-usage", "--force-color-profile=srgb"]
        browser = play.chromium.launch(executable_path=chromium(), args=options)
        yield browser
        browser.close()


def listen(page: Page) -> list[str]:
    """Collect what a page complains about from now on: errors, warnings and failed requests."""
    said: list[str] = []
    page.on("console", lambda m: said.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("requestfailed", lambda request: said.append(f"not loaded: {request.url}"))
    return said
