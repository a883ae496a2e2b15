"""Product pictures: painted from the seed, made smaller, and laid out on a contact sheet, all with Pillow."""

from pathlib import Path

from PIL import Image, ImageDraw

from project.demo.round import Picture, colour

SOURCE_SIZE = (960, 720)
THUMBNAIL_SIZE = (160, 120)
GAP = 8


def paint(seed: int, picture: Picture, folder: Path) -> Path:
    """Write a source picture; a corrupt one is an error page that a browser saved."""
    path = folder / picture.file
    path.parent.mkdir(parents=True, exist_ok=True)
    if picture.corrupt:
        path.write_bytes(b"<html>413 Request Entity Too Large</html>")
    else:
        canvas(seed, picture).save(path, quality=85)
    return path


def canvas(seed: int, picture: Picture) -> Image.Image:
    """A picture of rings and stripes in colours of the seed."""
    image = Image.new("RGB", SOURCE_SIZE, colour(seed, picture.file, "ground"))
    brush = ImageDraw.Draw(image)
    width, height = SOURCE_SIZE
    for ring in range(7):
        inset = 40 + ring * 45
        brush.ellipse(
            (inset, inset * 3 // 4, width - inset, height - inset * 3 // 4),
            outline=colour(seed, picture.file, ring),
            width=18,
        )
    brush.text((24, height - 40), picture.file, fill="white")
    return image


def shrink(source: Path, target: Path) -> Path:
    """Write a thumbnail of a picture.

    Raises ``PIL.UnidentifiedImageError`` for a file that is no picture.
    """
    with Image.open(source) as image:
        image.thumbnail(THUMBNAIL_SIZE)
        return save(image, target)


def lay_out(thumbnails: list[Path], target: Path) -> Path:
    """Write a contact sheet: the thumbnails side by side."""
    width, height = THUMBNAIL_SIZE
    sheet = Image.new("RGB", (len(thumbnails) * (width + GAP) + GAP, height + 2 * GAP), "white")
    for place, path in enumerate(thumbnails):
        with Image.open(path) as image:
            sheet.paste(image, (GAP + place * (width + GAP), GAP))
    return save(sheet, target)


def save(image: Image.Image, target: Path) -> Path:
    """Write an image aside and move it into place, so that a killed process leaves no half a file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_suffix(".part")
    image.save(aside, format="JPEG")
    aside.replace(target)
    return target
