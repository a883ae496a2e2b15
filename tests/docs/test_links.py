"""Links lead somewhere: to files and headings that exist."""

import pytest

from tests.docs.material import Page, page, pages

INTERNAL = [(p, link) for p in pages() for link in p.links if "://" not in link]


@pytest.mark.parametrize(("source", "link"), INTERNAL, ids=[f"{p}:{link}" for p, link in INTERNAL])
def test_a_link_leads_to_a_file_and_a_heading_that_exist(source, link):
    target, _, heading = link.partition("#")
    path = (source.path.parent / target).resolve() if target else source.path
    assert path.exists()
    assert not heading or heading in Page(path).anchors


def test_no_page_links_to_the_outside():
    assert [(str(p), link) for p in pages() for link in p.links if "://" in link] == []


@pytest.mark.parametrize("name", [p.name for p in pages() if p.name != "README.md"])
def test_every_page_is_linked_from_the_readme(name):
    assert name in {link.partition("#")[0] for link in page("README.md").links}
