"""Short clips: an animated picture or a video comes in, a list of frames as PIL images goes on to `chat`.

Animated GIF, WebP, PNG and AVIF are read by Pillow, MP4 and other videos by PyAV if it is installed. Frames are decoded
one after the other, and only those that are chosen are kept. Left out: sound, streams, addresses.
"""

from __future__ import annotations

import importlib.util
import io
import math
import os
import re
import sys
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate

from PIL import Image, ImageOps

from .checks import LIMITS, check_int, check_type, quoted
from .messages import MAX_FRAMES, sample_frames
from .pictures import VIDEO, check_sides, file_of, first_bytes, load_image, opened, to_rgb

ANIMATED = ("GIF", "WEBP", "PNG", "AVIF")  # of other pictures, such as TIFF, several are pages and no frames
FEWEST = 8  # frames of a clip that is shorter than as many seconds
UNSAID = 100  # milliseconds that browsers show a frame whose file does not say how long
# A video is data from outside. FFmpeg would also read lists that name other files and addresses; these kinds do not.
FFMPEG = {"protocol_whitelist": "file", "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"}
INSTALL = "a video, which is read by PyAV: {python} -m pip install av==18.1.0 (or save it as an animated GIF or WebP)"


@dataclass(frozen=True)
class Clip:
    frames: list[Image.Image]  # RGB
    count: int  # of all frames in the file
    seconds: float  # that it lasts


def load_clip(source, frames: int | None = None) -> list[Image.Image]:
    """Open an animated picture or a video, and choose frames from it.

    Without a number, one frame a second is taken, and of these at most 64, evenly, as released for MiniCPM-V 2.6. A
    clip of less than eight seconds would give few that way, so eight are taken, evenly (all, if it has fewer).

    Args:
        source: a path or a binary file object. Animated GIF, WebP, PNG, AVIF; MP4, MOV, WebM, MKV and AVI if PyAV is
            installed (the extra `video`). A picture that does not move is a clip of one frame.
        frames: so many, evenly (all, if the clip has fewer), at most 64; None: as said above.

    Returns:
        RGB images in the order of time (a frame that is shown for long may come several times), for a content list:
        {"role": "user", "content": [load_clip(path), "What happens?"]}. What is transparent becomes white; a video that
        a phone has marked as turned is upright.

    Raises:
        TypeError: another source, or a number that is none.
        ValueError: not a clip, damaged, truncated, without frames, frames that are too many or too large together; a
            video where PyAV is missing (the message says how to install it); a number below 1 or above 64.
        OSError: the file does not exist, cannot be read, or is a pipe or a device.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "fade.gif"
        >>> first, *others = [Image.new("L", (8, 6), 20 * shade) for shade in range(12)]
        >>> first.save(path, save_all=True, append_images=others, duration=200)
        >>> [frame.getpixel((0, 0))[0] for frame in load_clip(path, 4)]
        [20, 80, 140, 200]

    Source: encode_video in docs/minicpm_v2dot6_en.md of OpenBMB/MiniCPM-V.
    """
    return read_clip(source, frames).frames


def read_clip(source, frames: int | None = None) -> Clip:
    """`load_clip`, with what the file says about itself."""
    if frames is not None:
        frames = check_int("frames", frames, 1, MAX_FRAMES)
    if not hasattr(source, "read"):
        check_type("source: a clip", source, str, os.PathLike, what="a path or a binary file")
    file, name = file_of(source, LIMITS["clip_bytes"])
    if re.match(VIDEO, first_bytes(file), re.S):
        return _read_video(file, name, frames)
    with opened(file, name) as (image, _):
        count, size = (image.n_frames if image.format in ANIMATED else 1), image.size
        # An animated PNG may begin with a picture for programs that do not know such files. It is no part of the clip.
        first = int(bool(image.info.get("default_image")))
    if count == 1:
        return Clip([load_image(file)], 1, 0.0)
    _check_pixels(count, size, frames)
    with opened(file, name) as (image, _):
        durations = _milliseconds(image, range(first, count))
        numbers = [first + number for number in at_their_times(durations, frames)]
        shown = {number: _frame(image, number) for number in sorted(set(numbers))}
    return Clip([shown[number] for number in numbers], count - first, sum(durations) / 1000)


def choose_frames(count: int, rate: float, frames: int | None) -> list[int]:
    """The numbers of the frames that `load_clip` takes of `count`, with so many a second."""
    if frames is None:
        a_second = range(0, count, max(1, round(rate)))
        if len(a_second) >= min(FEWEST, count):
            return sample_frames(a_second)
    return sample_frames(range(count), frames or FEWEST)


def at_their_times(durations: list[int], frames: int | None) -> list[int]:
    """As `choose_frames`, for frames that are shown for different times, in milliseconds.

    Programs that write animations store equal frames once, with a longer time. Here the clip is taken as the video that
    it looks like: with a frame in each common part of all times, so a long one is taken several times.
    """
    part, ends = math.gcd(*durations), list(accumulate(durations))
    return [bisect_right(ends, number * part) for number in choose_frames(ends[-1] // part, 1000 / part, frames)]


def _check_pixels(count: int, size: tuple[int, int], frames: int | None) -> None:
    width, height = check_sides(size)
    kept = min(count, frames or MAX_FRAMES)
    for what, number, most in ("kept", kept, LIMITS["clip_pixels"]), ("decoded", count, LIMITS["decoded_pixels"]):
        if number * width * height > most:
            raise ValueError(
                f"frames: {number:,} of {width:,} x {height:,} pixels would be {what}, more than {most:,} pixels; "
                "take fewer, or a smaller clip"
            )


# ---- animated pictures


def _milliseconds(image: Image.Image, numbers: range) -> list[int]:
    """How long an animation shows each frame; decodes all of them."""
    durations = []
    for number in numbers:
        image.seek(number)
        image.load()  # a WebP says only now how long it shows the frame
        durations.append(max(1, round(image.info.get("duration") or UNSAID)))
    return durations


def _frame(image: Image.Image, number: int) -> Image.Image:
    """One frame, on white. Under what is transparent, animations store anything: colors of other frames, too."""
    image.seek(number)
    frame = ImageOps.exif_transpose(image)
    if not frame.has_transparency_data:
        return to_rgb(frame)
    white = Image.new("RGBA", frame.size, "white")
    return Image.alpha_composite(white, frame.convert("RGBA")).convert("RGB")


# ---- videos


def _read_video(file: str | io.BytesIO, name: str, frames: int | None) -> Clip:
    if importlib.util.find_spec("av") is None:
        raise ValueError(f"{name} is {INSTALL.format(python=quoted(sys.executable))}")
    import av

    try:
        with av.open(file, options=FFMPEG) as video:
            if not video.streams.video:
                raise ValueError(f"{name} must have frames, but it holds no pictures, only sound or text")
            stream = video.streams.video[0]
            # Not decoded, only counted: what a header says about it may be missing or wrong.
            count = sum(packet.size > 0 and not packet.is_discard for packet in video.demux(stream))
            rate = float(stream.average_rate or stream.guessed_rate or 1)
            size = (stream.codec_context.width, stream.codec_context.height)
        if count == 0:
            raise ValueError(f"{name} must have frames, but it is a video without any")
        _check_pixels(count, size, frames)
        numbers = choose_frames(count, rate, frames)
        if isinstance(file, io.BytesIO):
            file.seek(0)
        kept = []
        with av.open(file, options=FFMPEG) as video:
            video.streams.video[0].thread_type = "AUTO"
            wanted = set(numbers)
            for number, frame in enumerate(video.decode(video=0)):
                if number in wanted:
                    kept.append(frame.to_image().rotate(frame.rotation, expand=True))
                if number == numbers[-1]:
                    break
    except av.FFmpegError as error:
        raise ValueError(f"{name}: its frames cannot be decoded, it is truncated or damaged: {error}") from error
    if len(kept) < len(numbers):
        raise ValueError(f"{name} is truncated or damaged: frame {numbers[len(kept)]} of {count} cannot be decoded")
    return Clip(kept, count, count / rate)
