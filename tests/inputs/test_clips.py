"""`load_clip`: the frames that the released rule takes, as they were drawn; one clear error for what is no clip."""

import importlib.util
import io
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image, ImageDraw

from minicpmv_ref import Processor, load_clip, load_image
from minicpmv_ref.inputs import clips
from minicpmv_ref.inputs.clips import choose_frames, read_clip

WITH_AV = pytest.mark.skipif(
    importlib.util.find_spec("av") is None, reason="needs the extra: pip install minicpmv-ref[video]"
)


def frame(number: int, mode: str = "RGB") -> Image.Image:
    """A red square at a place of its own, on white or on nothing."""
    image = Image.new(mode, (60, 40), "white" if mode == "RGB" else (0, 0, 0, 0))
    ImageDraw.Draw(image).rectangle((number, 10, number + 9, 19), fill=(255, 0, 0))
    return image


def written(numbers, kind="GIF", duration=100, mode="RGB", **options) -> io.BytesIO:
    file = io.BytesIO()
    first, *others = [frame(number, mode) for number in numbers]
    first.save(file, kind, save_all=True, append_images=others, duration=duration, **options)
    return file


def places(frames) -> list[int]:
    """Where the square stands in each, and that nothing else is there."""
    found = []
    for image in frames:
        assert image.mode == "RGB" and image.size == (60, 40)
        pixels = np.asarray(image).astype(int)
        red = (pixels[..., 0] > 200) & (pixels[..., 1] < 60)
        assert pixels[~red].min() > 200  # white
        rows, columns = np.nonzero(red)
        assert (len(rows), rows.min(), rows.max()) == (100, 10, 19)
        found.append(int(columns.min()))
    return found


# ---- which frames


def released(count: int, rate: float) -> list[int]:
    """encode_video of docs/minicpm_v2dot6_en.md, with numbers in place of frames."""

    def uniform_sample(numbers, n):
        gap = len(numbers) / n
        return [numbers[int(i * gap + gap / 2)] for i in range(n)]

    chosen = list(range(0, count, round(rate / 1)))
    return uniform_sample(chosen, 64) if len(chosen) > 64 else chosen


@pytest.mark.parametrize("rate", [1, 2, 3.7, 12.5, 24, 25, 29.97, 60])
@pytest.mark.parametrize("seconds", [8, 9.3, 60, 64, 65, 90, 127, 128, 600])
def test_the_released_choice(rate, seconds):
    count = round(seconds * rate)
    wanted = released(count, rate)
    assert len(wanted) >= 8  # shorter clips are the next test's
    assert choose_frames(count, rate, None) == wanted


def test_a_short_clip_gives_eight_or_all():
    assert choose_frames(48, 24, None) == [3, 9, 15, 21, 27, 33, 39, 45]
    assert choose_frames(6, 10, None) == [0, 1, 2, 3, 4, 5]
    assert choose_frames(70, 10, None) == choose_frames(70, 10, 8)
    assert choose_frames(3, 0.05, None) == [0, 1, 2]  # slower than one a second


def test_a_number_gives_so_many_evenly():
    assert choose_frames(100, 10, 4) == [12, 37, 62, 87]
    assert choose_frames(3, 3, 64) == [0, 1, 2]
    assert choose_frames(10_000, 25, 1) == [5000]


# ---- animated pictures

KINDS = [
    ("GIF", {"disposal": 2}),
    ("GIF", {}),
    ("PNG", {}),
    ("WEBP", {"lossless": True}),
    ("AVIF", {"quality": 100, "subsampling": "4:4:4"}),
]


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_frames_are_as_drawn(kind, options, tmp_path):
    file = written(range(0, 48, 2), kind, **options)
    (tmp_path / "a.bin").write_bytes(file.getvalue())  # the first bytes count, not the name
    clip = read_clip(tmp_path / "a.bin")
    assert (clip.count, round(clip.seconds, 6)) == (24, 2.4)
    assert places(clip.frames) == [2, 8, 14, 20, 26, 32, 38, 44]
    assert places(load_clip(file, frames=64)) == list(range(0, 48, 2))


@pytest.mark.parametrize(
    ("kind", "options"), [("GIF", {"disposal": 2}), ("PNG", {"disposal": 1}), ("WEBP", {"exact": True})]
)
def test_what_is_transparent_becomes_white(kind, options):
    frames = load_clip(written(range(0, 50, 10), kind, mode="RGBA", **options))
    for number, image in enumerate(frames):  # WebP keeps colors of such files only nearly
        colors = [image.getpixel((10 * other + 4, 14)) for other in range(5)]
        wanted = [(255, 0, 0) if other == number else (255, 255, 255) for other in range(5)]
        assert np.abs(np.subtract(colors, wanted)).max() < 6
        assert image.getpixel((55, 35)) == (255, 255, 255)


def test_durations_are_the_file_s_own():
    durations = [1000, 3000, 500, 0]  # none is said for the last: 0.1 seconds
    assert read_clip(written([1, 2, 3, 4], duration=durations)).seconds == pytest.approx(4.6)


def test_equal_frames_that_a_program_has_stored_once_come_back():
    file = written([0, 0, 0, 10, 20, 20, 30, 30], "WEBP", lossless=True, duration=250)
    clip = read_clip(file)
    assert (clip.count, clip.seconds, places(clip.frames)) == (4, 2.0, [0, 0, 0, 10, 20, 20, 30, 30])
    assert places(load_clip(file, 4)) == [0, 10, 20, 30]


def test_frames_of_different_times_are_taken_at_each_second():
    file = written([0, 10, 20, 30], duration=[4010, 1980, 3010, 1000])  # shown from 0, 4.01, 5.99 and 9 s on
    assert places(load_clip(file)) == [0] * 5 + [10] + [20] * 3 + [30]
    assert places(load_clip(file, 2)) == [0, 20]  # at a quarter and three quarters of 10 s


def test_the_picture_in_front_of_an_animated_png_is_no_frame():
    assert places(load_clip(written([0, 10, 20], "PNG", default_image=True))) == [10, 20]


def test_a_picture_is_a_clip_of_one_frame(tmp_path):
    frame(3).save(tmp_path / "a.png")
    pages = io.BytesIO()
    frame(3).save(pages, "TIFF", save_all=True, append_images=[frame(4)])
    for source in (tmp_path / "a.png", written([3])):
        assert places(load_clip(source)) == [3]
    still = read_clip(tmp_path / "a.png")
    assert (len(still.frames), still.count, still.seconds) == (1, 1, 0)
    with pytest.warns(UserWarning, match="only the first is read: save its pages"):
        assert places(load_clip(pages)) == [3]
    assert load_clip(tmp_path / "a.png") == [load_image(tmp_path / "a.png")]


def test_ten_thousand_frames_are_not_kept(monkeypatch):
    one = written([3]).getvalue()  # header and palette, one frame, ";"
    start = one.index(b"\x21\xf9") if b"\x21\xf9" in one else one.index(b"\x2c", 13 + 3 * 2 ** (1 + (one[10] & 7)))
    control = b"\x21\xf9\x04\x00\x04\x00\x00\x00"  # 40 milliseconds
    image = one[one.index(b"\x2c", start) : -1]
    file = io.BytesIO(one[:start] + (control + image) * 10_000 + b";")
    seen, show = [], clips.to_rgb
    monkeypatch.setattr(clips, "to_rgb", lambda image: seen.append(image) or show(image))
    clip = read_clip(file)
    assert (clip.count, clip.seconds, len(clip.frames), len(seen)) == (10_000, 400, 64, 64)
    assert places(clip.frames) == [3] * 64


# ---- what is no clip


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "AVIF"])
def test_truncated_files(kind):
    data = written(range(0, 50, 2), kind).getvalue()
    for part in (20, len(data) // 4, len(data) // 2, len(data) - 30):
        with pytest.raises(ValueError, match="the file is not a picture that Pillow can decode: "):
            load_clip(io.BytesIO(data[:part]))


def test_frames_that_would_fill_the_memory_are_refused_before_they_are_decoded(monkeypatch):
    monkeypatch.setattr(clips, "_milliseconds", None)
    monkeypatch.setitem(clips.LIMITS, "clip_pixels", 20 * 60 * 40)
    with pytest.raises(ValueError, match="frames: 21 of 60 x 40 pixels would be kept, more than 48,000 pixels"):
        load_clip(written(range(50)), 21)
    monkeypatch.setitem(clips.LIMITS, "decoded_pixels", 49 * 60 * 40)
    with pytest.raises(ValueError, match="frames: 50 of 60 x 40 pixels would be decoded"):
        load_clip(written(range(50)), 20)


@pytest.mark.parametrize("number", [0, 65, -1, 2.5, "8", True])
def test_impossible_numbers(number):
    with pytest.raises((TypeError, ValueError), match="frames must be an integer of at least 1 and at most 64"):
        load_clip(written([1, 2]), number)


def test_other_files_and_sources(tmp_path):
    (tmp_path / "a.gif").write_text("no clip")
    with pytest.raises(ValueError, match=r"a\.gif is not a picture that Pillow can decode: it is none of"):
        load_clip(tmp_path / "a.gif")
    with pytest.raises(FileNotFoundError):
        load_clip(tmp_path / "b.gif")
    with pytest.raises(TypeError, match="a clip must be a path or a binary file, got Image"):
        load_clip(frame(1))
    with pytest.raises(TypeError, match="a clip must be a path or a binary file, got list"):
        load_clip([frame(1), frame(2)])


# ---- videos


def video(count, rate, kind="mp4", codec="libx264"):
    import av

    file = io.BytesIO()
    with av.open(file, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(count):
            gray = np.full((48, 64, 3), 2 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(gray, format="rgb24")))
        container.mux(stream.encode())
    return file


@WITH_AV
@pytest.mark.parametrize("kind", ["mp4", "matroska", "avi", "mov"])
@pytest.mark.parametrize(("count", "rate"), [(100, 10), (120, Fraction(30000, 1001)), (70, 1), (20, 10)])
def test_a_video_gives_the_same_choice(kind, count, rate):
    clip = read_clip(video(count, rate, kind))
    seconds = count / rate
    wanted = released(count, rate) if seconds >= 8 else choose_frames(count, rate, 8)
    assert (clip.count, clip.seconds) == (count, pytest.approx(float(seconds)))
    assert [round(image.getpixel((30, 20))[1] / 2) for image in clip.frames] == pytest.approx(wanted, abs=1)
    assert {image.size for image in clip.frames} == {(64, 48)}


@WITH_AV
def test_damaged_videos():
    data = video(50, 10).getvalue()
    for part in (50, len(data) // 2):
        with pytest.raises(ValueError, match="the file: its frames cannot be decoded, it is truncated or damaged"):
            load_clip(io.BytesIO(data[:part]))


def test_without_the_decoder_the_message_says_how_to_install_it(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").write_bytes(b"\0\0\0\x20ftypisom" + bytes(99))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name == "av" else find(name))
    with pytest.raises(ValueError, match=r"a\.mp4 is a video, which is read by PyAV: .* -m pip install av==18\.1\.0"):
        load_clip(tmp_path / "a.mp4")


# ---- on to the model


def test_frames_go_on_as_they_are_and_differ_in_size():
    processor = Processor.from_pretrained("nano")
    frames = load_clip(written([0, 10, 20]))
    batch = processor([{"role": "user", "content": [frames, "What happens?"]}])
    assert [plan.image_size for plan in batch.plans[0]] == [(60, 40)] * 3
    assert "<image_id>" not in processor.tokenizer.decode(batch.input_ids[0])
    mixed = [frames[0], frames[1].resize((300, 100)), frames[2]]
    plans = processor([{"role": "user", "content": [mixed, "What?"]}]).plans[0]
    assert [plan.image_size for plan in plans] == [(60, 40), (300, 100), (60, 40)]
    assert plans[1].num_slices == 2  # at most two for a frame
