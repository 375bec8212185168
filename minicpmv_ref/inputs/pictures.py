"""The one door for pictures: a file or a PIL image comes in, an upright 8-bit RGB image goes on to `slicing`.

Pillow chooses the decoder by the first bytes of a file, whatever its name, and some decoders hand the file to another
program (EPS: Ghostscript). So only the formats below are decoded, also when the caller has opened the file already.
Left out: drawings (SVG, PDF), color profiles. `clips.py` reads what moves.
"""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from PIL import ExifTags, Image, ImageChops, ImageOps, UnidentifiedImageError

from .checks import LIMITS, WrongType, check_type, printable, shown
from .files import plain_file

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "PPM", "WEBP", "TIFF", "AVIF", "HEIF")  # HEIF: where a plugin is loaded
SIBLINGS = ("MPO", "DIB")  # what Pillow calls a JPEG with several pictures, as phones write, and a BMP of a clipboard

VIDEO = rb"....ftyp(?!avi|hei|hev|mif1|msf1)|\x1aE\xdf\xa3|RIFF....AVI "  # MP4 and MOV, WebM and MKV, AVI
HINTS = {  # what the first bytes of other files look like, and what helps
    rb"....ftyp(hei|hev|mif1|msf1)": "a HEIC picture: install pillow-heif, call pillow_heif.register_heif_opener()",
    VIDEO: "a video: load_clip gives a list of its frames",
    rb"%!PS|\xc5\xd0\xd3\xc6": "PostScript, a program that draws: save it as PNG",
    rb"%PDF": "a PDF: save its pages as PNG",
    rb"\s*<(!doctype html|html)": "a web page, perhaps of a download that failed",
    rb"\s*<(svg|[?!].*?<svg)": "an SVG drawing: save it as PNG",
    rb"version https://git-lfs": "a pointer of Git LFS: get the picture with `git lfs pull`",
    rb"\Z": "an empty file",
}


def load_image(source) -> Image.Image:
    """Open a picture and make it upright RGB.

    Values of more than 8 bits are scaled to 0..255. Where the file says how far they go, that is used (PGM, and TIFF
    by BitsPerSample or MaxSampleValue), otherwise they go to 65535; a picture that is dark then gives a warning. Alpha
    is dropped, as in the released code; a picture that looks different on white gives a warning, too.

    Args:
        source: a path, a binary file object, or a PIL image of any mode. Of a file with several frames or pages the
            first is taken, with a warning; a PIL image that was moved to another one keeps it. Files are PNG, JPEG,
            GIF, BMP, PPM, WebP, TIFF, AVIF, and HEIF if pillow-heif is loaded.

    Returns:
        An RGB image, with its EXIF orientation applied.

    Raises:
        TypeError: `source` is something else, for example an array or a file in text mode.
        ValueError: not a picture of these formats, damaged, truncated, or so large that Pillow suspects a
            decompression bomb; an address instead of a path.
        OSError: the file does not exist, cannot be read, or is a pipe or a device.

    Example:
        >>> load_image(Image.new("L", (4, 3), 7)).getpixel((0, 0))
        (7, 7, 7)
    """
    if isinstance(source, Image.Image):
        return _upright(source, "the picture")
    with opened(*file_of(source)) as (image, name):
        upright = _upright(image, name)
        _warn_if_several(name, image)
        return upright


def picture_size(source) -> tuple[int, int]:
    """Read only a file's header: (width, height), not turned by EXIF (in a TIFF: turned). Errors as `load_image`."""
    with opened(*file_of(source)) as (image, _):
        return check_sides(image.size)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """The size that `load_image` gives to a PIL image, without its pixels."""
    try:
        if image.format == "TIFF":
            image.load()  # Pillow turns it then, and its size is the turned one before
        turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    except Exception:
        return load_image(image).size  # says what is wrong with it
    return image.size[::-1] if turned else image.size


def to_rgb(image: Image.Image) -> Image.Image:
    """Read a PIL image of any mode as 8-bit RGB.

    Alpha is dropped, as the released code does: a transparent pixel shows the color stored under it. Pillow's own
    conversion clips 16-bit images to white; here they are scaled (see `load_image`): "I;16" always, "I" if a value
    exceeds 255. Mode "F" counts as 0..1 if no value exceeds 1.

    Raises:
        TypeError: no PIL image.
        ValueError: an image whose file turns out to be damaged (Pillow reads files only when pixels are needed), or of
            a format that is not decoded here; values outside 0..65535, in mode "F" outside 0..255.
    """
    deep = _deep(check_type("image", image, Image.Image, what="a PIL image"))
    _decode(image)
    return _rgb(image, "the picture", *deep)


def check_sides(size: tuple[int, int]) -> tuple[int, int]:
    """Refuse a picture without pixels, and one that is so long for its width that its views would take minutes."""
    width, height = size
    if 0 in size:
        raise ValueError(f"size (width, height) must be at least 1 on both sides, got {size}")
    if max(size) > LIMITS["aspect"] * min(size):
        raise ValueError(
            f"an image of {width:,} x {height:,} pixels is too long for its width: one side may have at most "
            f"{LIMITS['aspect']:,} times the other. Cut it into parts, or take off what is not needed"
        )
    return size


# ---- opening


@contextmanager
def opened(file: str | io.BytesIO, name: str) -> Iterator[tuple[Image.Image, str]]:
    """A file's picture, not decoded yet, and its name; what goes wrong with it is one ValueError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=_formats()) as image:
                yield image, name
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise ValueError(
            f"{name}: more than {Image.MAX_IMAGE_PIXELS:,} pixels may be a decompression bomb; make it smaller, or set "
            "PIL.Image.MAX_IMAGE_PIXELS higher if you trust it"
        ) from None
    except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError):
        raise
    except UserWarning:  # ours, where the caller made it an error
        raise
    except UnidentifiedImageError:
        raise ValueError(f"{name} is not a picture that Pillow can decode: {_what(file)}") from None
    except Exception as error:  # Pillow's plugins raise almost anything on a damaged file
        if "MAX_TEXT" in str(error):
            reason = "it holds more text than Pillow reads; save it without, or raise PIL.PngImagePlugin.MAX_TEXT_CHUNK"
            raise ValueError(f"{name} is not a picture that Pillow can decode: {reason}") from None
        raise ValueError(f"{name} is not a picture that Pillow can decode: {error}") from error


def _formats() -> list[str]:
    return [name for name in FORMATS if name != "HEIF" or name in Image.OPEN]


def file_of(source, most: int | None = None) -> tuple[str | io.BytesIO, str]:
    """What Pillow opens, and its name for messages. `most`: bytes of a path's file, if not a picture's."""
    if hasattr(source, "read") and not isinstance(source, type):
        name = getattr(source, "name", None)
        return _read(source), printable(str(name)) if isinstance(name, str | os.PathLike) else "the file"
    check_type("source: an image", source, str, os.PathLike, what="a path, a binary file or a PIL image")
    try:
        path = os.fsdecode(source)
        sound = 0 < len(os.fsencode(path)) < 4096 and "\0" not in path
    except (TypeError, ValueError):  # an odd __fspath__; characters that no file name can have
        path, sound = source, False
    if isinstance(path, str) and re.match(r"(https?|ftp|s3|gs|file|data):", path, re.I):
        raise ValueError(f"source is an address, not a path; pass io.BytesIO of its bytes instead: {shown(path)}")
    if not sound:
        raise ValueError(f"source must be the path of an image, got {shown(path)}")
    with suppress(FileNotFoundError, IsADirectoryError):  # the system's own errors follow
        plain_file(path, most or LIMITS["picture_bytes"])
    return path, printable(path)


def _read(file) -> io.BytesIO:
    """All of an open file, from its beginning if it can go back there."""
    parts, size = [], 0
    try:
        with suppress(AttributeError, io.UnsupportedOperation):
            file.seek(0)
        while chunk := file.read(2**20):
            if not isinstance(chunk, bytes):
                raise WrongType(f"source must be a file in binary mode, its read() gave {type(chunk).__name__}")
            parts.append(chunk)
            size += len(chunk)
            if size > LIMITS["picture_bytes"]:
                raise ValueError(f"source has more than {LIMITS['picture_bytes']:,} bytes")
    except WrongType:
        raise
    except Exception as error:  # closed, write-only, a broken connection
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(f"source cannot be read: {error}") from error
    return io.BytesIO(b"".join(parts))


def first_bytes(file: str | io.BytesIO) -> bytes:
    if isinstance(file, io.BytesIO):
        return file.getvalue()[:512]
    with open(file, "rb") as opened_file:
        return opened_file.read(512)


def _what(file: str | io.BytesIO) -> str:
    """What a file is that Pillow does not know, as far as its first bytes say."""
    head = first_bytes(file)
    for pattern, hint in HINTS.items():
        if re.match(pattern, head.removeprefix(b"\xef\xbb\xbf"), re.S | re.I):
            return f"it is {hint}"
    return f"it is none of {', '.join(_formats())}, or damaged at its beginning"


# ---- decoding


def _upright(image: Image.Image, name: str) -> Image.Image:
    check_sides(image.size)
    deep = _deep(image)  # before the turn, which drops what the file says
    _decode(image)
    try:
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            image = ImageOps.exif_transpose(image)
    except Exception as error:
        raise ValueError(f"the image cannot be decoded: {error}") from error
    return _rgb(image, name, *deep)


def _decode(image: Image.Image) -> None:
    if image.format not in (None, *FORMATS, *SIBLINGS):
        raise ValueError(
            f"the image was opened as {shown(image.format)}, but only {', '.join(FORMATS)} are decoded here, because "
            "some other formats start programs; pass image.copy() if you trust its file"
        )
    try:
        image.load()
    except Exception as error:  # OSError, SyntaxError (PNG), RuntimeError (AVIF), and more from damaged files
        closed = getattr(image, "fp", True) is None and not str(error)  # Pillow asserts that it is open, without a word
        why = "its file was closed before its pixels were read; load_image(path) reads all" if closed else error
        raise ValueError(f"the image cannot be decoded: {why}") from error


def _deep(image: Image.Image) -> tuple[bool, int | None, bool]:
    """What a file says: whether samples have more than 8 bits, the largest value of one, and whether 0 is white."""
    if image.format == "PPM":
        return True, 65535, False  # Pillow has scaled them by the file's own maximum
    try:
        raw = [tile.args if isinstance(tile.args, str) else tile.args[0] for tile in getattr(image, "tile", ())]
        tags = getattr(image, "tag_v2", {})
        bits, most, meaning = (tags.get(number) for number in (258, 281, 262))  # BitsPerSample, MaxSampleValue, ...
    except Exception:  # damaged: decoding will say so
        raw, bits, most, meaning = [], None, None, None
    bits, most = (value[0] if isinstance(value, tuple) and value else value for value in (bits, most))
    deep = image.mode.startswith("I;16") or bits == 16 or any(re.match(r"(?!BGR)\w+;16", str(name)) for name in raw)
    if bits == 12:
        most = 4095
    elif not (isinstance(most, int) and most in (2**n - 1 for n in range(8, 17))):
        most = None  # some programs write the largest value that occurs
    return deep or bits == 12, most, meaning == 0  # PhotometricInterpretation 0: WhiteIsZero


def _rgb(image: Image.Image, name: str, deep: bool, most: int | None, negative: bool) -> Image.Image:
    if image.mode[0] in "IF":  # I, I;16, I;16B, F
        gray = _gray(image, name, deep, most)
        # Pillow turns around what is white at 0 only where it has up to 8 bits.
        return (ImageOps.invert(gray) if negative else gray).convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")  # Pillow knows no direct way
    _warn_if_see_through(name, image)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the same colors; the direct way warns about transparency
    if image.mode != "RGB":
        image = image.convert("RGB")
    if deep and most != 65535:  # Pillow has kept the upper 8 of 16 bits
        _warn_if_dark(name, max(high for _, high in image.getextrema()), 65535)
    return image


def _gray(image: Image.Image, name: str, deep: bool, most: int | None) -> Image.Image:
    """Scale gray values of any range to 8 bits."""
    mode = image.mode
    image = image.convert("F" if mode == "F" else "I")
    low, high = image.getextrema()
    top = 255 if mode == "F" else 65535
    if not 0 <= low <= high <= top:
        raise ValueError(f"a picture of mode {mode!r} must hold values in 0..{top}, got {low}..{high}")
    if mode == "F":
        scale = 255.0 if high <= 1 else 1
    elif most is not None and high <= most:
        scale = 255 / most
    else:
        scale = 1 / 257 if deep or high > 255 else 1
    if scale != 1:
        image = image.point(lambda value: value * scale + 0.5)
    if (mode == "F" and scale == 1) or (scale == 1 / 257 and most != 65535):
        _warn_if_dark(name, high * scale, top)
    return image.convert("L")


def _warn_if_several(name: str, image: Image.Image) -> None:
    """The model would answer about a part of the file. A JPEG of a phone (MPO) has other forms of the same picture."""
    try:
        several = image.format != "MPO" and image.is_animated
    except Exception:  # most formats have no such property, and what follows the first frame may be damaged
        return
    if several:
        others = "save its pages as files" if image.format == "TIFF" else "load_clip gives its frames"
        warnings.warn(f"{name} holds several pictures, and only the first is read: {others}", stacklevel=3)


def _warn_if_see_through(name: str, image: Image.Image) -> None:
    """Without alpha, a transparent pixel shows the color that is stored under it: mostly black."""
    if not image.has_transparency_data:
        return
    image = image.convert("RGBA")
    if image.getchannel("A").getextrema()[0] == 255:
        return
    on_white = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    differs = ImageChops.difference(on_white.convert("RGB"), image.convert("RGB")).convert("L")
    share = sum(differs.histogram()[64:]) / (image.width * image.height)
    if share > 0.01:
        warnings.warn(
            f"{name} is transparent in places. Alpha is dropped, as in the released code, so {share:.0%} of its pixels "
            "show a color that is stored under them, often black. To lay it on white: "
            "Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image.convert('RGBA'))",
            stacklevel=2,
        )


def _warn_if_dark(name: str, brightest: float, top: int) -> None:
    if 0 < brightest < 64:  # the two upper bits are never used
        warnings.warn(
            f"{name} is dark, its largest value becomes {brightest:.0f} of 255: its file does not say how far its "
            f"values go, so 0..{top} was assumed. If they end lower (12 bits: at 4095), scale them first: "
            "Image.fromarray((values * (255 / 4095)).astype('uint8'))",
            stacklevel=2,
        )
