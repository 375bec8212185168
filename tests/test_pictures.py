"""Pictures as the world makes them: every mode, every orientation, animations, odd sizes, damaged and hostile files."""

import gc
import io
import os
import random
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, features
from standins import byte_tokenizer

from minicpmv_ref.config import nano
from minicpmv_ref.processor import Processor, load_image, normalize_views
from minicpmv_ref.slicing import plan_slices, slice_image

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8))
SMOOTH = Image.linear_gradient("L").resize((60, 40)).convert("RGB")
ORIENTATION = 0x112


def encode(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def load_bytes(data: bytes) -> Image.Image:
    return load_image(io.BytesIO(data))


def ask(image) -> list[dict]:
    return [{"role": "user", "content": [image, "What is this?"]}]


def same(a: Image.Image, b: Image.Image) -> bool:
    return (a.mode, a.size, a.tobytes()) == (b.mode, b.size, b.tobytes())


# Modes

MODES = ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "PA", "RGBX", "RGBa", "La"]
MODES += ["I;16", "I;16L", "I;16B", "I;16N"]


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_rgb(mode):
    image = load_image(Image.new(mode, (5, 4)))
    assert (image.mode, image.size) == ("RGB", (5, 4))
    views = normalize_views(image, plan_slices(image.size))
    assert views[0].shape[0] == 3
    assert views[0].abs().max() <= 1


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "CMYK", "YCbCr", "LA", "PA", "RGBX", "I", "F"])
def test_colors_survive(mode):
    gray = Image.new("L", (2, 1))
    gray.putpixel((1, 0), 255)
    image = load_image(gray.convert("LA" if mode == "PA" else mode).convert(mode))
    assert [image.getpixel((x, 0)) for x in (0, 1)] == [(0, 0, 0), (255, 255, 255)]


def test_an_rgb_image_is_not_copied():
    assert load_image(NOISE) is NOISE


def test_cmyk_jpeg():
    data = encode(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "JPEG", quality=95)
    red, green, blue = load_bytes(data).getpixel((9, 9))
    assert red > 240
    assert green < 15
    assert blue < 15


def test_16_bit_png_is_scaled_and_not_clipped():
    values = np.array([[0, 257, 128 * 257, 65535]], np.uint16)
    image = load_bytes(encode(Image.fromarray(values), "PNG"))
    assert [image.getpixel((x, 0))[0] for x in range(4)] == [0, 1, 128, 255]


@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")
def test_transparency_is_dropped():
    rgba = Image.new("RGBA", (3, 3), (200, 100, 50, 0))
    assert load_bytes(encode(rgba, "PNG")).getpixel((0, 0)) == (200, 100, 50)
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    for transparency in (1, bytes([0, 128])):
        image = load_bytes(encode(palette, "PNG", transparency=transparency))
        assert [image.getpixel((x, 0)) for x in (0, 1)] == [(10, 20, 30), (200, 100, 50)]
    assert load_bytes(encode(Image.new("LA", (2, 2), (77, 0)), "PNG")).getpixel((0, 0)) == (77, 77, 77)


def test_one_bit_png():
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    loaded = load_bytes(encode(image, "PNG"))
    assert [loaded.getpixel((x, 0)) for x in (0, 1)] == [(0, 0, 0), (255, 255, 255)]


@pytest.mark.parametrize(
    ("values", "expected"), [([0.0, 0.5, 1.0], [0, 128, 255]), ([0.0, 100.0, 255.0], [0, 100, 255])]
)
def test_float_tiff(values, expected):
    data = encode(Image.fromarray(np.array([values], np.float32)), "TIFF")
    assert [load_bytes(data).getpixel((x, 0))[0] for x in range(3)] == expected


@pytest.mark.parametrize("value", [-1.0, 256.0, float("nan"), float("inf")])
def test_float_values_that_are_no_brightness_are_refused(value):
    with pytest.raises(ValueError, match=r"mode 'F' must hold values in 0\.\.255"):
        load_image(Image.new("F", (2, 2), value))


# Orientation


@pytest.mark.parametrize("orientation", [*range(1, 9), 0, 9])
def test_every_orientation_is_made_upright(orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    turned = NOISE.copy()
    turned.getexif()[ORIENTATION] = orientation
    for kind in ("PNG", "JPEG", "WEBP", "TIFF"):
        data = encode(NOISE, kind, exif=exif)
        with Image.open(io.BytesIO(data)) as file:
            expected = ImageOps.exif_transpose(file).convert("RGB")
        assert expected.size == ((40, 60) if 5 <= orientation <= 8 else (60, 40))
        assert same(load_bytes(data), expected)
        assert same(load_image(Image.open(io.BytesIO(data))), expected)
    upright = ImageOps.exif_transpose(turned)
    assert same(load_image(turned), upright)
    assert (orientation in (0, 1, 9)) == same(upright, NOISE)
    assert same(load_image(load_image(turned)), upright)  # turned once, not twice
    assert turned.getexif()[ORIENTATION] == orientation  # and the caller's image stays as it was
    assert turned.tobytes() == NOISE.tobytes()


def test_orientation_is_the_processors_business_and_not_slice_images():
    turned = NOISE.copy()
    turned.getexif()[ORIENTATION] = 6
    assert slice_image(turned)[0].size == plan_slices((60, 40)).overview_size
    batch = Processor(byte_tokenizer("2.6"), nano)(ask(turned))
    assert batch.plans[0][0].image_size == (40, 60)


def test_orientation_in_a_16_bit_png():
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    values = np.array([[0, 65535]], np.uint16)
    image = load_bytes(encode(Image.fromarray(values), "PNG", exif=exif))
    assert image.size == (1, 2)
    assert [image.getpixel((0, y))[0] for y in (0, 1)] == [0, 255]


# Animations

FRAMES = [Image.new("RGB", (20, 10), color) for color in ("red", "lime", "blue")]
ANIMATED = {
    "GIF": encode(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]),
    "WEBP": encode(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:], lossless=True),
    "PNG": encode(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:]),
    "TIFF": encode(FRAMES[0], "TIFF", save_all=True, append_images=FRAMES[1:]),
}


@pytest.mark.parametrize("kind", ANIMATED)
def test_of_an_animated_file_the_first_frame_is_taken(kind, tmp_path):
    path = tmp_path / f"frames.{kind.lower()}"
    path.write_bytes(ANIMATED[kind])
    with Image.open(path) as file:
        assert file.n_frames == 3
    image = load_image(path)
    assert image.getpixel((5, 5)) == (255, 0, 0)
    assert slice_image(image)[0].getpixel((9, 9)) == (255, 0, 0)  # usable after its file is closed


@pytest.mark.parametrize("kind", ANIMATED)
def test_an_image_moved_to_another_frame_keeps_it(kind):
    with Image.open(io.BytesIO(ANIMATED[kind])) as file:
        for frame in (2, 1, 0):
            file.seek(frame)
            assert load_image(file).getpixel((5, 5)) == FRAMES[frame].getpixel((0, 0))
            assert file.tell() == frame


# Sizes


@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1), (2, 3), (13, 15), (65_000, 3)])
def test_extreme_shapes(size):
    image = Image.new("RGB", size, (255, 0, 255))
    plan = plan_slices(size)
    views = normalize_views(load_image(image), plan)
    for view, (rows, cols) in zip(views, plan.patch_grids, strict=True):
        assert view.shape == (3, 14 * rows, 14 * cols)
        assert view.amin(dim=(1, 2)).tolist() == view.amax(dim=(1, 2)).tolist() == [1, -1, 1]
        assert rows * cols < 5000


LARGE = """
import resource, sys, time
from PIL import Image
from minicpmv_ref.processor import load_image, normalize_views
from minicpmv_ref.slicing import plan_slices
image = Image.effect_noise((5000, 4000), 50).convert("RGB")
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
views = normalize_views(load_image(image), plan_slices(image.size))
seconds, peak = time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(sum(view.numel() for view in views), (peak - before) // 1024, seconds)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss counts kilobytes on Linux only")
def test_20_megapixels_take_little_time_and_memory():
    done = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, check=True, cwd=os.getcwd())
    numbers, megabytes, seconds = (float(word) for word in done.stdout.split())
    assert numbers == sum(3 * 196 * r * c for r, c in plan_slices((5000, 4000)).patch_grids)
    assert megabytes < 120  # the picture has 80, the views 24
    assert seconds < 10


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (5, 0)])
def test_pictures_without_pixels_are_refused(size):
    image = Image.new("RGB", size)
    for call in (load_image, slice_image, lambda x: Processor(byte_tokenizer("2.6"), nano)(ask(x))):
        with pytest.raises(ValueError, match="must be at least 1 on both sides"):
            call(image)


def png_header(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [60_000, 10_000])  # Pillow's error, and its warning
def test_decompression_bombs_are_refused_without_decompressing(side, tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(side, side))
    with pytest.raises(ValueError, match=r"bomb.png: .*decompression bomb"):
        load_image(path)


# Files that are no pictures

BROKEN = {
    "empty.png": b"",
    "text.jpg": b"This is not a picture.\n" * 9,
    "vector.svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9" height="9"/></svg>',
    "zeros.bin": bytes(1000),
    "head.jpg": b"\xff\xd8\xff\xe0\x00\x10JFIF\x00",
    "zero_wide.png": png_header(0, 5),
    "no_pixels.png": png_header(100, 100),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_picture_is_refused_by_name(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(BROKEN[name])
    for source in (path, str(path)):
        with pytest.raises(ValueError, match=f"{name} is not a picture that Pillow can decode"):
            load_image(source)
    with pytest.raises(ValueError, match="the file is not a picture"):
        load_image(io.BytesIO(BROKEN[name]))
    with open(path, "rb") as file, pytest.raises(ValueError, match=f"{name} is not a picture"):
        load_image(file)


def test_missing_files_and_folders_are_os_errors(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "absent.png", tmp_path, tmp_path / "file" / "below.png"):
        with pytest.raises(OSError, match=path.name) as caught:
            load_image(path)
        assert caught.value.errno  # the system's own error, not Pillow's


@pytest.mark.parametrize("source", [None, 3, np.zeros((4, 4, 3), np.uint8), torch.zeros(3, 4, 4), [NOISE]])
def test_other_objects_are_refused_by_type(source):
    with pytest.raises(ValueError, match=f"an image must be a path, .* got {type(source).__name__}"):
        load_image(source)


EXIF = Image.Exif()
EXIF[ORIENTATION] = 6
EXIF.get_ifd(0x8769)[0x9003] = "2024:08:03 12:00:00"
ENCODED = {
    "JPEG": encode(NOISE, "JPEG", exif=EXIF),
    "JPEG, progressive": encode(SMOOTH, "JPEG", progressive=True, exif=EXIF),
    "PNG": encode(NOISE, "PNG", exif=EXIF),
    "PNG, palette": encode(SMOOTH.convert("P"), "PNG"),
    "PNG, 16 bit": encode(Image.fromarray(np.arange(2400, dtype=np.uint16).reshape(40, 60)), "PNG"),
    "WEBP": encode(NOISE, "WEBP", exif=EXIF),
    "WEBP, lossless": encode(SMOOTH, "WEBP", lossless=True),
    "GIF": ANIMATED["GIF"],
    "APNG": ANIMATED["PNG"],
    "WEBP, animated": ANIMATED["WEBP"],
    "BMP": encode(SMOOTH, "BMP"),
    "PPM": encode(SMOOTH, "PPM"),
    "DDS": encode(SMOOTH, "DDS"),
    "TIFF": encode(SMOOTH, "TIFF", exif=EXIF),
}
if features.check("avif"):
    ENCODED["AVIF"] = encode(SMOOTH, "AVIF")


def outcome(source) -> str:
    """'fine' or 'refused'; any other exception fails the test. Warnings about the file are Pillow's own business."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = load_image(source)
            assert image.mode == "RGB"
            slice_image(image, nano.slicing)
        except ValueError as error:
            assert str(error)
            return "refused"
    return "fine"


@pytest.mark.parametrize("name", [name for name in ENCODED if name not in ("DDS", "TIFF")])
def test_truncated_files_are_refused(name):
    data = ENCODED[name]
    assert outcome(io.BytesIO(data)) == "fine"
    cuts = sorted({*range(0, len(data), max(1, len(data) // 40)), len(data) - len(data) // 50})
    outcomes = [outcome(io.BytesIO(data[:cut])) for cut in cuts]
    # A picture may be whole before its file ends: later frames, an end mark, metadata at the end.
    assert outcomes[: len(cuts) // 4] == ["refused"] * (len(cuts) // 4)
    if name in ("JPEG", "PNG", "PNG, palette", "WEBP, lossless", "BMP", "PPM"):
        assert outcomes[: -max(3, len(cuts) // 12)].count("fine") == 0


# A damaged "WEBP, animated" may claim a huge canvas, which libwebp then spends seconds on.
@pytest.mark.parametrize("name", [name for name in ENCODED if name != "WEBP, animated"])
def test_random_damage_is_decoded_or_refused_but_nothing_else(name):
    generator = random.Random(name)
    seen = set()
    for _ in range(60):
        data = bytearray(ENCODED[name])
        for _ in range(generator.choice([1, 2, 8, 30])):
            head = generator.random() < 0.5
            data[generator.randrange(min(len(data), 200) if head else len(data))] = generator.randrange(256)
        if generator.random() < 0.2:
            data = data[: generator.randrange(len(data))]
        seen.add(outcome(io.BytesIO(data)))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                lazy = Image.open(io.BytesIO(data))
        except Exception:  # Pillow's own, before we are asked
            continue
        seen.add(outcome(lazy))
    assert "refused" in seen


@pytest.mark.parametrize("name", ["JPEG", "JPEG, progressive", "PNG", "PNG, 16 bit", "GIF", "BMP", "PPM"])
def test_lazily_opened_truncated_images_are_refused_everywhere(name):
    data = ENCODED[name]
    cut = data[: len(data) // (3 if name == "GIF" else 2)]  # inside the first frame
    processor = Processor(byte_tokenizer("2.6"), nano)
    for call in (load_image, slice_image, lambda image: processor(ask(image))):
        lazy = Image.open(io.BytesIO(cut))
        with pytest.raises(ValueError, match="cannot be decoded"):
            call(lazy)


# Files are let go


def open_files(path) -> list[str]:
    links = [os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    return [link for link in links if os.path.islink(link) and os.readlink(link) == str(path)]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="open files are listed on Linux only")
def test_files_are_closed_whatever_happens(tmp_path):
    kept = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number, data in enumerate([*ENCODED.values(), *BROKEN.values()]):
            for cut in (1, 2):
                path = tmp_path / f"{number}_{cut}"
                path.write_bytes(data[: len(data) // cut])
                try:
                    kept.append(load_image(path))
                except ValueError:
                    assert cut == 2 or data in BROKEN.values()
                assert open_files(path) == []
                path.unlink()
        gc.collect()
    assert not [w for w in caught if issubclass(w.category, ResourceWarning)]
    for image in kept:
        assert len(slice_image(image, nano.slicing)) >= 1  # usable without its file


def test_a_file_object_stays_open_and_is_the_callers():
    file = io.BytesIO(ENCODED["PNG"])
    load_image(file)
    assert not file.closed
