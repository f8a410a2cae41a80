"""Tests the Markdown documents: line width, links, and names of settings."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dreamfleet.runtime import reference

ROOT = Path(__file__).parents[2]
WIDTH = 100  # columns
OLD_NAMES = ("CHANGELOG.md",)  # documents that name settings of earlier versions


def tracked() -> list[str]:
    """Returns the paths of all Markdown files that git does not ignore."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "-z", "*.md"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True)
    return sorted(path for path in listed.stdout.split("\0") if path and (ROOT / path).exists())


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def prose(text: str) -> Iterator[tuple[int, str]]:
    """Yields the line numbers and lines of a document that are ordinary text.

    Code blocks, tables, HTML and generated results are left out.
    """
    in_code = in_results = False
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.lstrip()
        if stripped.startswith(("<!-- results", "<!-- end of results")):
            in_results = not in_results
        elif stripped.startswith("```"):
            in_code = not in_code
        elif not in_code and not in_results and not stripped.startswith(("|", "<")):
            yield number, line


def visible(line: str) -> str:
    """Returns a line of Markdown without link targets and URLs, which do not count as width."""
    return re.sub(r"https?://\S+", "", re.sub(r"\]\([^)]*\)", "]", line))


def links(text: str) -> list[str]:
    """Returns the targets of all links and images in a document, except URLs."""
    shown = re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r"\]\(([^)\s]+)\)", shown) + re.findall(r'(?:src|href)="([^"]+)"', shown)
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def anchors(text: str) -> set[str]:
    """Returns the anchors that GitHub derives from the headings of a document."""
    headings = [line.lstrip("#").strip() for _, line in prose(text) if line.startswith("#")]
    kept = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in kept}


def settings_named_in(text: str) -> set[str]:
    """Returns all names such as `agent.NAME` and `train.NAME` in a document.

    Names of files and methods, and names in commands of the results, are left out.
    """
    without_results = re.sub(r"<!-- results.*?<!-- end of results -->", "", text, flags=re.DOTALL)
    found = re.findall(r"(?<![\w./-])((?:agent|train)\.[a-z]\w*)(?![\w(])", without_results)
    return {name for name in found if not name.endswith(".py")}


def known_settings(text: str) -> set[str]:
    """Returns the names of all existing settings.

    Includes settings that the code in the document itself defines, for an example agent.
    """
    known = {setting.name for group in reference.groups().values() for setting in group}
    return known | {
        f"agent.{name}" for name in re.findall(r"^    (\w+): \w+ = ", text, re.MULTILINE)
    }


@pytest.mark.parametrize("path", tracked())
def test_prose_is_at_most_100_columns_wide(path):
    wide = [number for number, line in prose(read(path)) if len(visible(line)) > WIDTH]
    assert not wide, f"{path}: lines {wide} are wider than {WIDTH} columns"


@pytest.mark.parametrize("path", tracked())
def test_every_relative_link_leads_to_a_file_and_heading_that_exist(path):
    broken = []
    for target in links(read(path)):
        name, _, anchor = target.partition("#")
        file = (ROOT / path).parent / name if name else ROOT / path
        if not file.exists() or (anchor and anchor not in anchors(file.read_text("utf-8"))):
            broken.append(target)
    assert not broken, f"{path}: {broken} do not exist"


@pytest.mark.parametrize("path", sorted(set(tracked()) - set(OLD_NAMES)))
def test_every_setting_in_a_document_exists(path):
    text = read(path)
    unknown = settings_named_in(text) - known_settings(text)
    assert not unknown, f"{path}: {sorted(unknown)} are settings of no agent"
