"""The picture of the flood shows what was measured, and says what was cut off."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tests.bench import picture


def run(**more: Any) -> dict[str, Any]:
    """A run with the waits of ours and of two peers."""
    waits: dict[str, dict[str, float]] = {
        "mainstay": {"waited_s": 0.05},
        "celery": {"more_than_s": 20.0, "own_s": 0.004},
        "dramatiq": {"waited_s": 41.2, "own_s": 0.2, "flood": 90_000},
    }
    samples = [
        {
            "measure": "flood",
            "case": "",
            "system": name,
            "round": 1,
            "figures": {"flood": 100_000, "before": 3, **found},
        }
        for name, found in waits.items()
    ]
    return {"samples": samples, "quick": False, **more}


def words(page: Path) -> list[str]:
    """All texts of the picture, which must be XML."""
    return [each.text or "" for each in ElementTree.parse(page).iter() if each.tag.endswith("text")]


def test_every_wait_has_a_bar_with_its_seconds(tmp_path: Path) -> None:
    page = tmp_path / "flood.svg"
    assert picture.draw(run(), page)
    found = words(page)
    assert {"0.05 s", "41 s, behind 90,000", "more than 20 s", "0.20 s", "0.00 s"} <= set(found)
    assert "stock Celery, untracked, in a queue of its own" in found
    assert found[0] == "One job behind 100,000 of somebody else: seconds until it begins"


def test_a_longer_wait_has_a_longer_bar() -> None:
    drawn = ElementTree.fromstring(picture.drawn(picture.bars(run()["samples"]), 1)).iter()
    _, *wide = [each.attrib["width"] for each in drawn if each.tag.endswith("rect")]
    assert int(wide[0]) < int(wide[1]) < int(wide[3])


def test_no_picture_is_made_of_a_quick_run(tmp_path: Path) -> None:
    assert not picture.draw(run(quick=True), tmp_path / "flood.svg")
    assert not picture.draw({"samples": [], "quick": False}, tmp_path / "flood.svg")
