"""Product pictures: real image files, and one that is none."""

import pytest
from PIL import Image, UnidentifiedImageError

from project.demo import pictures
from project.demo.round import Picture


def test_a_picture_is_painted_the_same_from_the_same_seed(tmp_path):
    picture = Picture("sku", "a.jpg", corrupt=False)
    first = pictures.paint(7, picture, tmp_path / "one").read_bytes()
    assert pictures.paint(7, picture, tmp_path / "two").read_bytes() == first


def test_a_thumbnail_fits_its_frame(tmp_path):
    source = pictures.paint(7, Picture("sku", "a.jpg", corrupt=False), tmp_path)
    with Image.open(pictures.shrink(source, tmp_path / "small.jpg")) as small:
        assert small.size == pictures.THUMBNAIL_SIZE


def test_a_corrupt_picture_is_no_picture(tmp_path):
    source = pictures.paint(7, Picture("sku", "a.jpg", corrupt=True), tmp_path)
    with pytest.raises(UnidentifiedImageError):
        pictures.shrink(source, tmp_path / "small.jpg")


def test_a_contact_sheet_holds_every_thumbnail(tmp_path):
    sources = [pictures.paint(7, Picture("sku", f"{n}.jpg", corrupt=False), tmp_path) for n in range(3)]
    thumbnails = [pictures.shrink(source, tmp_path / "small" / source.name) for source in sources]
    with Image.open(pictures.lay_out(thumbnails, tmp_path / "sheet.jpg")) as sheet:
        assert sheet.width > 3 * pictures.THUMBNAIL_SIZE[0]
