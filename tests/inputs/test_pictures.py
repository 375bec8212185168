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
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, features

from minicpmv_ref.config import nano
from minicpmv_ref.inputs import pictures
from minicpmv_ref.inputs.checks import LIMITS
from minicpmv_ref.inputs.pictures import FORMATS, picture_size, to_rgb
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


@pytest.mark.filterwarnings("ignore:the picture is transparent:UserWarning")
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
def test_transparency_is_dropped_and_a_warning_says_so():
    def dropped(image, **options):
        with pytest.warns(UserWarning, match="the file is transparent in places. Alpha is dropped"):
            return load_bytes(encode(image, "PNG", **options))

    assert dropped(Image.new("RGBA", (3, 3), (200, 100, 50, 0))).getpixel((0, 0)) == (200, 100, 50)
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    for transparency in (1, bytes([0, 128])):
        image = dropped(palette, transparency=transparency)
        assert [image.getpixel((x, 0)) for x in (0, 1)] == [(10, 20, 30), (200, 100, 50)]
    assert dropped(Image.new("LA", (2, 2), (77, 0))).getpixel((0, 0)) == (77, 77, 77)
    assert dropped(Image.new("RGB", (2, 2), "red"), transparency=(255, 0, 0)).getpixel((0, 0)) == (255, 0, 0)


TRANSPARENT = ["RGBA", "LA", "PA", "RGBa", "La"]


def ink(mode, alpha, color="black"):
    """40 x 30 pixels of one color under this mask."""
    image = Image.new("P" if mode == "PA" else "RGB", (40, 30), color)
    image.putalpha(alpha)
    return image if mode == "PA" else image.convert("LA").convert(mode) if mode == "La" else image.convert(mode)


@pytest.mark.parametrize("mode", TRANSPARENT)
def test_a_transparent_picture_of_any_mode_is_named(mode):
    half, dot = Image.new("L", (40, 30), 255), Image.new("L", (40, 30), 255)
    half.paste(0, (0, 0, 20, 30))
    dot.putpixel((3, 3), 0)
    with pytest.warns(UserWarning, match="the picture is transparent in places.* 50% of its pixels"):
        assert load_image(ink(mode, half)).getpixel((1, 1)) == (0, 0, 0)
    load_image(ink(mode, dot))  # warnings are errors here
    if mode in ("RGBA", "LA"):
        load_image(ink(mode, half, "white"))  # looks the same on white; the other modes store no color there


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
    batch = Processor.from_pretrained("nano")(ask(turned))
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
    with pytest.warns(UserWarning, match=rf"{path.name} holds several pictures, and only the first is read: \w+"):
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
    for call in (load_image, slice_image, lambda x: Processor.from_pretrained("nano")(ask(x))):
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
    "MPO": encode(SMOOTH, "MPO", save_all=True, append_images=[NOISE]),
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


@pytest.mark.parametrize("name", [name for name in ENCODED if name not in ("MPO", "TIFF")])
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
    processor = Processor.from_pretrained("nano")
    for call in (load_image, slice_image, lambda image: processor(ask(image))):
        lazy = Image.open(io.BytesIO(cut))
        with pytest.raises(ValueError, match="cannot be decoded"):
            call(lazy)


@pytest.mark.parametrize("name", ["JPEG", "PNG", "GIF"])
def test_a_picture_whose_file_is_closed(name):
    with Image.open(io.BytesIO(ENCODED[name])) as lazy:
        pass  # its pixels were never asked for
    with pytest.raises(ValueError, match="cannot be decoded: its file was closed before its pixels were read"):
        load_image(lazy)


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


# Formats: Pillow knows many more, and some start other programs

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.fixture
def ghostscript(tmp_path, monkeypatch):
    """Stands for a real one, and says whether it ran."""
    program, ran = tmp_path / "gs", tmp_path / "ran"
    program.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exit 0; echo "$@" >> {ran}; exit 1\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "gs_binary", str(program))
    return ran


def with_preview(postscript: bytes) -> bytes:
    """The other way that PostScript begins: behind a header in binary."""
    return struct.pack("<4sII", b"\xc5\xd0\xd3\xc6", 32, len(postscript)) + bytes(20) + postscript


@pytest.mark.skipif(os.name != "posix", reason="a shell script")
@pytest.mark.parametrize("data", [POSTSCRIPT, with_preview(POSTSCRIPT)], ids=["text", "binary"])
def test_no_picture_starts_a_program(data, ghostscript, tmp_path):
    with pytest.raises(subprocess.CalledProcessError):
        Image.open(io.BytesIO(data)).load()  # what Pillow does
    assert ghostscript.exists()
    ghostscript.unlink()
    for name in ("a.png", "a.jpg", "a.eps", "a"):
        (tmp_path / name).write_bytes(data)
        for source in (tmp_path / name, io.BytesIO(data)):
            for function in (load_image, picture_size):
                with pytest.raises(ValueError, match="it is PostScript, a program that draws: save it as PNG"):
                    function(source)
    for function in (load_image, slice_image, to_rgb):
        with pytest.raises(ValueError, match=r"opened as 'EPS', but only PNG, JPEG.*pass image\.copy\(\) if you trust"):
            function(Image.open(io.BytesIO(data)))
    assert not ghostscript.exists()


@pytest.mark.parametrize("kind", ["DDS", "ICO", "TGA", "PCX", "SGI", "JPEG2000", "PDF", "XBM"])
def test_other_formats_are_refused_opened_or_not(kind):
    data = encode(SMOOTH.convert("1") if kind == "XBM" else SMOOTH, kind)
    with pytest.raises(ValueError, match=r"it is none of PNG, JPEG, .*, or damaged|it is a PDF: save its pages as PNG"):
        load_bytes(data)
    if kind == "PDF":  # Pillow only writes it
        return
    for function in (load_image, slice_image):
        with pytest.raises(ValueError, match=f"opened as '{kind}'"):
            function(Image.open(io.BytesIO(data)))
    assert load_image(Image.open(io.BytesIO(data)).copy()).mode == "RGB"  # the way that the message names


@pytest.mark.parametrize("name", FORMATS)
def test_pillow_knows_every_format_of_the_list_by_this_name(name):
    Image.init()
    assert (name in Image.OPEN) == (name != "HEIF")


def test_a_jpeg_of_several_pictures(tmp_path):
    path = tmp_path / "phone.jpg"
    path.write_bytes(ENCODED["MPO"])
    with Image.open(path) as file:
        assert (file.format, file.n_frames) == ("MPO", 2)
        assert same(load_image(file), load_image(path))
    assert load_image(path).size == picture_size(path) == SMOOTH.size


def test_heif_is_opened_where_a_plugin_is_loaded(monkeypatch):
    data = b"\0\0\0\x18ftypheic" + bytes(99)
    with pytest.raises(ValueError, match="it is a HEIC picture: install pillow-heif, call pillow_heif"):
        load_bytes(data)

    class Heif(type(Image.open(io.BytesIO(ENCODED["BMP"])))):
        format = "HEIF"

        def _open(self):
            self.fp = io.BytesIO(ENCODED["BMP"])
            super()._open()

    monkeypatch.setitem(Image.OPEN, "HEIF", (Heif, lambda prefix: prefix[4:12] == b"ftypheic"))
    assert same(load_bytes(data), SMOOTH)


def test_no_other_file_of_the_package_opens_pictures():
    package = Path(pictures.__file__).parent
    found = [path for path in package.rglob("*.py") if "Image.open(" in path.read_text("utf-8")]
    assert found == [package / "pictures.py"]


# More than 8 bits


def tiff_with(values, **tags) -> bytes:
    from PIL import TiffImagePlugin

    info = TiffImagePlugin.ImageFileDirectory_v2()
    for number, value in tags.items():
        info[int(number.lstrip("t"))] = value
    return encode(Image.fromarray(np.asarray(values, np.uint16)), "TIFF", tiffinfo=info)


def pgm(values, most: int) -> bytes:
    values = np.asarray(values)
    kind = ">u2" if most > 255 else "u1"
    return b"P5 %d %d %d\n" % (*values.shape[::-1], most) + values.astype(kind).tobytes()


def twelve_bit_tiff(values) -> bytes:
    """Three bytes hold two values; Pillow reads that and writes it not."""
    values = np.asarray(values)
    packed = bytearray()
    for a, b in values.reshape(-1, 2).tolist():
        packed += bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255])
    entries = [(256, values.shape[1]), (257, values.shape[0]), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1)]
    entries += [(278, values.shape[0]), (279, len(packed))]
    table = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", tag, 4, 1, n) for tag, n in entries)
    return struct.pack("<2sHI", b"II", 42, 8 + len(packed)) + packed + table + bytes(4)


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_a_picture_that_says_how_many_bits_it_has_uses_them(bits):
    most = 2**bits - 1
    ramp = np.linspace(0, most, 256).round().astype(np.uint16).reshape(1, 256)
    for data in [tiff_with(ramp, t281=most), twelve_bit_tiff(ramp) if bits == 12 else pgm(ramp, most)]:
        with Image.open(io.BytesIO(data)) as opened:
            for image in (load_bytes(data), load_image(opened)):
                np.testing.assert_array_equal(np.asarray(image)[0, :, 0], np.arange(256))


@pytest.mark.parametrize(
    "values", [np.arange(0, 65536, 257, np.uint16), np.arange(256, dtype=np.float32) / 255, np.arange(256, dtype="u1")]
)
def test_a_tiff_in_which_white_is_0(values):
    """X-rays often are. Pillow turns them around only where they have up to 8 bits."""
    data = bytearray(encode(Image.fromarray(values[None]), "TIFF"))
    place = data.index(struct.pack("<HHI", 262, 3, 1))  # PhotometricInterpretation
    assert data[place + 8] == 1
    data[place + 8] = 0
    with Image.open(io.BytesIO(data)) as opened:
        for image in (load_bytes(bytes(data)), load_image(opened), to_rgb(Image.open(io.BytesIO(data)))):
            np.testing.assert_array_equal(np.asarray(image)[0, :, 0], np.arange(256)[::-1])


def test_a_dark_picture_that_says_its_range_stays_dark_and_is_no_reason_to_warn():
    dark = np.array([[0, 20, 40]])
    assert np.asarray(load_bytes(pgm(dark * 10, 4095)))[0, :, 0].tolist() == [0, 12, 25]
    assert np.asarray(load_bytes(pgm(dark // 2, 4095)))[0, :, 0].tolist() == [0, 1, 1]  # not taken for 8 bits
    assert np.asarray(load_bytes(tiff_with(dark, t281=65535)))[0].max() == 0


UNSAID = {
    "PNG": lambda ramp: io.BytesIO(encode(Image.fromarray(ramp), "PNG")),
    "TIFF": lambda ramp: io.BytesIO(encode(Image.fromarray(ramp), "TIFF")),
    "TIFF with the largest value that occurs": lambda ramp: io.BytesIO(tiff_with(ramp, t281=int(ramp.max()) - 95)),
    "an array": Image.fromarray,
    "an array, big-endian": lambda ramp: Image.fromarray(ramp.astype(">u2")),
    "an array of 32 bits": lambda ramp: Image.fromarray(ramp.astype(np.int32)),
    "color PNG": lambda ramp: io.BytesIO(deep_color_png(ramp)),
}


def deep_color_png(values) -> bytes:
    """16 bits in each of three channels; Pillow reads that as 8 bits, and writes it not."""
    rows = b"".join(b"\0" + np.repeat(row.astype(">u2"), 3).tobytes() for row in values)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", UNSAID)
@pytest.mark.parametrize("bits", [10, 12, 14])
def test_where_nothing_says_the_range_a_dark_picture_warns(bits, kind):
    """A camera's 12 bits in a file of 16: nearly black."""
    ramp = np.linspace(0, 2**bits - 1, 256).round().astype(np.uint16).reshape(1, 256)
    with pytest.warns(UserWarning, match=r"largest value becomes \d+ of 255.*0\.\.65535 was assumed.*scale them first"):
        image = load_image(UNSAID[kind](ramp))
    assert np.asarray(image).max() == pytest.approx((2**bits - 1) / 257, abs=1)
    bright = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(1, 256)  # 16 bits in use: no warning
    np.testing.assert_array_equal(np.asarray(load_image(UNSAID[kind](bright)))[0, :, 0], np.arange(256))


def test_a_depth_map_in_meters_warns():
    with pytest.warns(UserWarning, match=r"largest value becomes 6 of 255.*0\.\.255 was assumed"):
        image = load_image(Image.fromarray(np.array([[0, 3, 6]], np.float32)))
    assert np.asarray(image)[0, :, 0].tolist() == [0, 3, 6]


def test_the_warning_names_the_file_and_may_be_an_error(tmp_path):
    path = tmp_path / "xray.png"
    Image.fromarray(np.full((4, 4), 4095, np.uint16)).save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match=r"xray\.png is dark"):
            load_image(path)
        assert load_image(Image.new("I;16", (4, 4))).getextrema() == ((0, 0),) * 3  # black is black in any range


# What other files are, and what helps

TEXT = png_header(4, 4)[:33] + b"".join(
    struct.pack(">I", len(data)) + b"zTXt" + data + struct.pack(">I", zlib.crc32(b"zTXt" + data))
    for data in [b"Comment\0\0" + zlib.compress(bytes(3_000_000))]
)
HELP = [
    (b"\0\0\0\x18ftypheix" + bytes(99), "a HEIC picture: install pillow-heif"),
    (b"\0\0\0\x18ftypmif1" + bytes(99), "a HEIC picture: install pillow-heif"),
    (b"\0\0\0\x20ftypisom" + bytes(99), "a video: load_clip gives a list of its frames"),
    (b"\0\0\0\x14ftypqt  " + bytes(99), "a video"),
    (b"\x1aE\xdf\xa3" + bytes(99), "a video"),
    (b"RIFF\0\0\0\0AVI LIST" + bytes(99), "a video"),
    (b"%PDF-1.7\n", "a PDF: save its pages as PNG"),
    (b'<?xml version="1.0"?>\n<!-- a -->\n<svg width="9"/>', "an SVG drawing: save it as PNG"),
    (b"\xef\xbb\xbf  <svg/>", "an SVG drawing"),
    (b"<!DOCTYPE html><html><svg/></html>", "a web page, perhaps of a download that failed"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a pointer of Git LFS"),
    (b"", "an empty file"),
    (TEXT, "it holds more text than Pillow reads; save it without, or raise PIL.PngImagePlugin.MAX_TEXT_CHUNK"),
]


@pytest.mark.parametrize(("data", "words"), HELP, ids=[words[:20] for _, words in HELP])
def test_messages_that_help(data, words, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(data)
    for source in (path, io.BytesIO(data)):
        with pytest.raises(ValueError, match=r"(a\.png|the file) is not a picture that Pillow can decode: ") as error:
            load_image(source)
        assert words in str(error.value)
        assert error.value.__cause__ is None  # Pillow's own words would hide ours
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [(1, 20_000_000), (1, 65_537), (200_000, 3)])
def test_lines_that_would_compute_for_minutes_are_refused_by_their_header(size, monkeypatch):
    data = png_header(*size)  # there are no pixels
    for function in (load_image, picture_size):
        with pytest.raises(
            ValueError, match=f"{size[0]:,} x {size[1]:,} pixels is too long for its width.*Cut it into"
        ):
            function(io.BytesIO(data))
    monkeypatch.setattr(Image.Image, "load", None)
    with pytest.raises(ValueError, match="too long for its width"):
        load_image(Image.new("1", size))
    assert picture_size(io.BytesIO(png_header(1, 65_536))) == (1, 65_536)


def test_a_100_megapixel_photo_says_how_to_open_it(tmp_path, monkeypatch):
    path = tmp_path / "photo.png"
    Image.new("1", (10_000, 10_000)).save(path)
    for function in (load_image, picture_size):
        with pytest.raises(ValueError, match=r"photo\.png: more than 89,478,485 pixels .* set PIL\.Image\.MAX_IMAGE"):
            function(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert picture_size(path) == load_image(path).size == (10_000, 10_000)


# What is no source


class Reader:
    name = "reader"

    def __init__(self, read):
        self.read = read


def closed_file():
    file = io.BytesIO(ENCODED["PNG"])
    file.close()
    return file


class OddPath:
    def __fspath__(self):
        return 3


NO_SOURCES = [
    (b"bytes", "must be a path, a binary file or a PIL image, got bytes"),
    (io.BytesIO, "must be a path, a binary file or a PIL image, got type"),
    (io.StringIO("text"), "must be a file in binary mode, its read.. gave str"),
    (Reader(lambda size=-1: "text"), "binary mode, its read.. gave str"),
    (Reader(lambda size=-1: 7), "binary mode, its read.. gave int"),
    (Reader(3), "source cannot be read"),
    (closed_file(), "source cannot be read: I/O operation on closed file"),
    ("", "must be the path of an image, got ''"),
    ("a\0.png", "must be the path of an image, got"),
    (Path("a\0.png"), "must be the path of an image, got"),
    ("\ud800.png", "must be the path of an image, got"),
    ("iVBORw0KGgo" * 20_000, "must be the path of an image, got"),
    (OddPath(), "must be the path of an image, got"),
    ("https://example.org/a.png", "is an address, not a path; pass io.BytesIO of its bytes instead"),
    ("data:image/png;base64," + "iVBORw0KGgo" * 20_000, "is an address, not a path"),
    ("file:/a.png", "is an address, not a path"),
]


@pytest.mark.parametrize(("source", "words"), NO_SOURCES, ids=[str(n) for n in range(len(NO_SOURCES))])
def test_other_sources_are_refused_by_name(source, words):
    with pytest.raises((TypeError, ValueError), match=words) as error:
        load_image(source)
    assert str(error.value).startswith("source")
    assert len(str(error.value)) < 250


def test_a_file_that_is_not_open_for_reading(tmp_path):
    with open(tmp_path / "a.png", "wb") as file, pytest.raises(OSError, match="source cannot be read"):
        load_image(file)
    (tmp_path / "b.png").write_bytes(ENCODED["PNG"])
    with open(tmp_path / "b.png", encoding="latin-1") as file, pytest.raises(TypeError, match="binary mode"):
        load_image(file)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="only where pipes have names")
def test_pipes_and_devices_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("/dev/zero")
    for name in ("pipe.png", "link.png"):
        for function in (load_image, picture_size):
            with pytest.raises(OSError, match=f"{name} is a pipe or a device"):
                function(tmp_path / name)


def test_files_are_read_up_to_a_limit(tmp_path, monkeypatch):
    monkeypatch.setitem(LIMITS, "picture_bytes", 3_000_000)
    asked = []
    endless = Reader(lambda size=-1: asked.append(size) or bytes(size))
    with pytest.raises(ValueError, match=r"source .*more than 3,000,000 bytes"):
        load_image(endless)
    assert len(asked) == 3
    with open(tmp_path / "large.png", "wb") as file:
        file.truncate(3_000_001)
    with pytest.raises(ValueError, match=r"large\.png has 3,000,001 bytes"):
        load_image(tmp_path / "large.png")


def test_a_stream_that_cannot_go_back():
    data = io.BytesIO(ENCODED["PNG"])
    assert same(load_image(Reader(data.read)), load_bytes(ENCODED["PNG"]))
    end = io.BytesIO()
    NOISE.save(end, "PNG")  # and one that stands at its end, as `save` leaves it
    assert same(load_image(end), NOISE)


def test_the_header_alone(tmp_path):
    for name, data in ENCODED.items():
        size = (20, 10) if data in ANIMATED.values() else (60, 40)
        size = size[::-1] if name == "TIFF" else size  # turned already
        (tmp_path / "a").write_bytes(data)
        assert picture_size(tmp_path / "a") == picture_size(io.BytesIO(data)) == size, name
    assert picture_size(io.BytesIO(png_header(100, 70))) == (100, 70)  # there are no pixels
    for data in BROKEN.values():
        if data != BROKEN["no_pixels.png"]:
            with pytest.raises(ValueError, match="the file is not a picture that Pillow can decode"):
                picture_size(io.BytesIO(data))
