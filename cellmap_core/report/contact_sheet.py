"""All crops at a glance: a sheet of thumbnails, and the page that carries it."""

from __future__ import annotations

import base64
import io
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, UnidentifiedImageError

from cellmap_core.models import CropPicture
from cellmap_core.report.crop_pictures import THUMBNAIL_PX, VERDICT_COLOURS, font
from cellmap_core.report.text import MARKDOWN_LIMIT_BYTES, markdown_table

#: Name, PNG (or the file that holds it), and whether it is flagged.
Picture = tuple[str, bytes | Path, bool]

# Below 64 pixels nobody sees whether an outline follows a membrane.
_SIDES_PX = (THUMBNAIL_PX, 112, 96, 80, 64)
_QUALITIES = (80, 60, 40)
# The width of a page in the Prefect UI: wider, and the browser shrinks the names away.
_WIDTH_PX, _GAP, _FRAME, _NOTE = 736, 4, 2, 18
_LINE, _TEXT = 11, 9
_INK, _PAPER, _BLANK = (30, 30, 30), (255, 255, 255), (225, 225, 225)
# The words and the table of a page take this much; the sheet gets the rest.
_SHOWN = 100
_WORDS_BYTES = 20_000
_SUSPECT = {"shifted": 0, "unclear": 1}


def contact_sheet(pictures: Sequence[Picture], limit_bytes: int, total: int | None = None) -> bytes:
    """JPEG of a grid of thumbnails with their names, flagged ones first and framed red.

    Thumbnails shrink, down to 64 pixels, until the sheet fits; then the last ones are left
    off and a note says how many are shown.

    Parameters
    ----------
    pictures : sequence of (str, bytes or Path, bool)
        Name, PNG or its file, and whether the crop is flagged.
    limit_bytes : int
        The sheet is not larger, as long as one thumbnail fits.
    total : int, optional
        How many there are, where ``pictures`` are only the first of them.
    """
    total = len(pictures) if total is None else total
    ordered = sorted(pictures, key=lambda p: not p[2])
    opened = [(name, _opened(source), flagged) for name, source, flagged in ordered]
    sheet = b""
    for side in _SIDES_PX:
        cells = [_cell(*picture, side) for picture in opened]
        for quality in _QUALITIES:
            sheet = _jpeg(_grid(cells, total, side), quality)
            if len(sheet) <= limit_bytes:
                return sheet
    shown = len(cells)
    while len(sheet) > limit_bytes and shown > 1:
        # The size goes with the number of pictures; each round comes nearer from above.
        shown = max(1, min(shown - 1, int(shown * limit_bytes / len(sheet))))
        sheet = _jpeg(_grid(cells[:shown], total, side), quality)
    return sheet


def contact_page(pictures: Sequence[CropPicture], limit_bytes: int = MARKDOWN_LIMIT_BYTES) -> str:
    """Markdown of the sheet of all crops, and by name the crops whose labels are shifted.

    Parameters
    ----------
    pictures : sequence of CropPicture
        Of all converted crops.
    limit_bytes : int
        The page is not larger.
    """
    counts = Counter(p.verdict for p in pictures)
    tally = ", ".join(f"{counts[v]} {v}" for v in VERDICT_COLOURS if counts[v])
    parts = [f"**{len(pictures)} crops**: {tally or 'none converted'}."]
    shifted = [p for p in pictures if p.verdict == "shifted"]
    if shifted:
        parts.append(f"### {len(shifted)} shifted\n\n{_shifted_table(shifted)}")
    if pictures:
        room = (limit_bytes - max(_WORDS_BYTES, len("".join(parts).encode()) + 500)) * 3 // 4
        # What may be wrong comes first: it is what is still shown where not all fit.
        ordered = sorted(pictures, key=lambda p: _SUSPECT.get(p.verdict, len(_SUSPECT)))
        flagged = [(p.crop, p.thumbnail, p.verdict == "shifted") for p in ordered]
        text = base64.b64encode(contact_sheet(flagged, room)).decode("ascii")
        parts.append(f"![all crops](data:image/jpeg;base64,{text})")
        parts.append(f"Larger pictures: `{pictures[0].picture.parent}`")
    return "\n\n".join(parts) + "\n"


def _shifted_table(shifted: Sequence[CropPicture]) -> str:
    rows = [
        {
            "crop": picture.crop,
            **{
                f"{axis} (nm)": round(nm)
                for axis, nm in zip("zyx", picture.shift_nm or (), strict=True)
            },
        }
        for picture in shifted[:_SHOWN]
    ]
    rest = len(shifted) - len(rows)
    return markdown_table(rows) + (f"\n\nand {rest} more" if rest else "")


def _opened(source: bytes | Path) -> Image.Image:
    """The thumbnail; a grey field where it is missing or damaged, so that the name is seen."""
    try:
        data = source if isinstance(source, bytes) else source.read_bytes()
        with Image.open(io.BytesIO(data)) as picture:
            return picture.convert("RGB")
    except (OSError, UnidentifiedImageError):
        return Image.new("RGB", (THUMBNAIL_PX, THUMBNAIL_PX), _BLANK)


def _cell(name: str, picture: Image.Image, flagged: bool, side: int) -> Image.Image:
    """A thumbnail in its frame with the name below, dataset over crop."""
    cell = Image.new("RGB", (side, side + 2 * _LINE + 2), _PAPER)
    small = picture.copy()
    small.thumbnail((side, side), Image.Resampling.BOX)
    cell.paste(small, ((side - small.width) // 2, (side - small.height) // 2))
    draw = ImageDraw.Draw(cell)
    colour = VERDICT_COLOURS["shifted"] if flagged else _INK
    if flagged:
        draw.rectangle((0, 0, side - 1, side - 1), outline=colour, width=_FRAME)
    for line, text in enumerate(name.rsplit("/", 1)):
        draw.text((1, side + 1 + line * _LINE), _fitted(text, side - 2), colour, font(_TEXT))
    return cell


def _fitted(text: str, width: int) -> str:
    """The text, cut at its end until it is no wider than ``width`` pixels, with a mark there."""
    shown = text
    while text and font(_TEXT).getlength(shown) > width:
        text = text[:-1]
        shown = f"{text}..."
    return shown


def _grid(cells: Sequence[Image.Image], total: int, side: int) -> Image.Image:
    columns = min(max(1, len(cells)), (_WIDTH_PX - _GAP) // (side + _GAP))
    rows = math.ceil(len(cells) / columns)
    step = (side + _GAP, side + 2 * _LINE + 2 + _GAP)
    top = _NOTE if len(cells) < total else _GAP
    width = max(_GAP + columns * step[0], 160)
    sheet = Image.new("RGB", (width, top + max(1, rows) * step[1]), _PAPER)
    if len(cells) < total:
        note = f"{len(cells)} of {total} shown"
        ImageDraw.Draw(sheet).text((_GAP, 2), note, _INK, font(12))
    for number, cell in enumerate(cells):
        row, column = divmod(number, columns)
        sheet.paste(cell, (_GAP + column * step[0], top + row * step[1]))
    return sheet


def _jpeg(sheet: Image.Image, quality: int) -> bytes:
    sink = io.BytesIO()
    sheet.save(sink, "JPEG", quality=quality, optimize=True)
    return sink.getvalue()
