"""Every block of Python in the README and the docs does what its page says."""

import ast

import pytest

from tests.docs.material import ROOT, pages

# What is shown of a file that only a project of the reader's has.
PROJECT_FILES = ("mysite/",)
FOLLOWED_ELSEWHERE = {"docs/tutorial.md"}
PAGES = [p for p in pages() if p.blocks_of("python") and p.name not in FOLLOWED_ELSEWHERE]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_a_reader_can_type_in_a_whole_page(reader, page):
    for block in page.blocks_of("python"):
        if not (block.path or "").startswith(PROJECT_FILES):
            reader.type_in(block)


@pytest.mark.parametrize("block", [b for p in PAGES for b in p.blocks_of("python")], ids=str)
def test_a_block_is_python(block):
    ast.parse(block.code)


def test_every_block_says_its_language():
    assert [str(b) for p in pages() for b in p.blocks if not b.language] == []


@pytest.mark.parametrize("page", pages(), ids=str)
def test_a_line_is_not_longer_than_130_characters(page):
    assert [line for line in page.prose.splitlines() if len(line) > 130 and not line.startswith("|")] == []


def test_the_readme_names_the_version_of_the_wheel():
    import tomllib

    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"mainstay-{version}-py3-none-any.whl" in (ROOT / "README.md").read_text()
