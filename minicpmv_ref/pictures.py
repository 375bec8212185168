"""The one door for pictures: a file or a PIL image comes in, an upright 8-bit RGB image goes on to `slicing`."""

from __future__ import annotations

import os
import warnings

from PIL import ExifTags, Image, ImageOps


def load_image(source) -> Image.Image:
    """Open a picture and make it upright RGB.

    Args:
        source: a path, a binary file object, or a PIL image of any mode. Of an animated file the first frame is taken;
            a PIL image that was moved to another frame keeps it.

    Returns:
        An RGB image, with its EXIF orientation applied.

    Raises:
        ValueError: not a picture, damaged, truncated, or so large that Pillow suspects a decompression bomb.
        OSError: the file does not exist or cannot be read.

    Example:
        >>> load_image(Image.new("L", (4, 3), 7)).getpixel((0, 0))
        (7, 7, 7)
    """
    if not isinstance(source, Image.Image):
        if not isinstance(source, str | os.PathLike) and not hasattr(source, "read"):
            raise ValueError(f"an image must be a path, a binary file or a PIL image, got {type(source).__name__}")
        name = source if isinstance(source, str | os.PathLike) else getattr(source, "name", "the file")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(source) as image:
                    return load_image(image)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise ValueError(f"{name}: {error}") from None
        except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError):
            raise
        except Exception as error:  # Pillow's plugins raise almost anything on a damaged file
            raise ValueError(f"{name} is not a picture that Pillow can decode: {error}") from error
    if 0 in source.size:
        raise ValueError(f"size (width, height) must be at least 1 on both sides, got {source.size}")
    try:
        if source.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            source = ImageOps.exif_transpose(source)
    except Exception as error:
        raise ValueError(f"the image cannot be decoded: {error}") from error
    return to_rgb(source)


def to_rgb(image: Image.Image) -> Image.Image:
    """Read a PIL image of any mode as 8-bit RGB.

    Alpha is dropped, as the released code does: a transparent pixel shows the color stored under it. Pillow's own
    conversion clips 16-bit images to white; here they are scaled: "I;16" always, "I" if a value exceeds 255. Mode "F"
    counts as 0..1 if no value exceeds 1.

    Raises:
        ValueError: an image whose file turns out to be damaged (Pillow reads files only when pixels are needed).
    """
    try:
        image.load()
        if image.mode == "RGB":
            return image
        if image.mode[0] in "IF":  # I, I;16, I;16B, F
            deep = image.mode.startswith("I;16")
            image = image.convert("F" if image.mode == "F" else "I")
            low, high = image.getextrema()
            most = 65535 if image.mode == "I" else 255
            if not 0 <= low <= high <= most:
                raise ValueError(f"a picture of mode {image.mode!r} must hold values in 0..{most}, got {low}..{high}")
            if image.mode == "I" and (deep or high > 255):
                image = image.point(lambda value: value * (1 / 257) + 0.5)
            elif image.mode == "F" and high <= 1:
                image = image.point(lambda value: value * 255.0 + 0.5)
            image = image.convert("L")
        elif image.mode == "La":
            image = image.convert("LA")  # Pillow knows no direct way
        elif image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # the same colors; the direct way warns about transparency
        return image.convert("RGB")
    except (OSError, SyntaxError, RuntimeError) as error:  # RuntimeError: Pillow's AVIF decoder
        raise ValueError(f"the image cannot be decoded: {error}") from error
