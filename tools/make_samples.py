"""Draw the pictures of `data_samples/images` and the clips of `data_samples/clips`, and crop the photographs.

    python tools/make_samples.py                    every rendered picture, and the clips
    python tools/make_samples.py --only receipt     one of them
    python tools/make_samples.py --photos FOLDER    the photographs too (data_samples/README.md names FOLDER)

The same Pillow, matplotlib and fonts give the same bytes; `screenshot.png` needs the same Chromium as well.
A picture whose font or browser is missing is skipped by name.
"""

import argparse
import shutil
import sys
from pathlib import Path

from PIL import Image
from samples import pages, scenes
from samples.sheet import Missing, save_jpeg, save_png

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from minicpmv_ref.toy.data import draw_more  # noqa: E402

IMAGES, CLIPS = ROOT / "data_samples" / "images", ROOT / "data_samples" / "clips"
RENDERED = {
    paint.__name__: paint
    for paint in (
        pages.document,
        pages.receipt,
        pages.chinese_page,
        scenes.banner,
        scenes.chart,
        scenes.screenshot,
        scenes.street_sign,
        scenes.station_sign,
        scenes.shapes,
        scenes.numbers,
    )
}

# files -> what `draw_more` draws for them; held out, so no model of the course has learned from them
SMALL_WORLD = {
    ("moving.gif",): dict(seed="samples/2", kind="clip", topic="direction", count=8),
    ("coming.webp",): dict(seed="samples/0", kind="clip", topic="last", count=8),
    ("first.png", "second.png"): dict(seed="samples/3", kind="many", topic="named", count=2),
}

# name -> (file in FOLDER, crop box or None for the whole picture); a whole JPEG is copied byte for byte
PHOTOS = {
    "astronaut.jpg": ("skimage/data/astronaut.png", None),
    "astronaut_448x448.jpg": ("skimage/data/astronaut.png", (20, 0, 468, 448)),
    "astronaut_449x448.jpg": ("skimage/data/astronaut.png", (20, 0, 469, 448)),
    "camera.jpg": ("skimage/data/camera.png", None),
    "cat.jpg": ("skimage/data/chelsea.png", None),
    "coffee.jpg": ("skimage/data/coffee.png", None),
    "galaxies.jpg": ("skimage/data/hubble_deep_field.jpg", (20, 20, 980, 660)),
    "retina.jpg": ("skimage/data/retina.jpg", (33, 33, 1377, 1377)),
    "rocket.jpg": ("skimage/data/rocket.jpg", None),
    "temple.jpg": ("sklearn/datasets/images/china.jpg", None),
}


def photograph(source, box, path):
    if box is None and source.suffix == ".jpg":
        shutil.copyfile(source, path)
        return
    image = Image.open(source, formats=["PNG", "JPEG"])
    image.load()
    image.info.clear()  # no comments, color profiles or EXIF in the crops
    save_jpeg(image.crop(box) if box else image, path)


def draw_clips(folder):
    """Save clips with four frames a second, and the pictures of an album; {files: the Sample}."""
    drawn = {}
    for names, wanted in SMALL_WORLD.items():
        sample = drawn[names] = draw_more(split="test", **wanted)
        first, *others = sample.images
        if len(names) == 1:
            lossless = {} if names[0].endswith(".gif") else {"lossless": True}
            first.save(folder / names[0], save_all=True, append_images=others, duration=250, loop=0, **lossless)
            continue
        for name, image in zip(names, sample.images, strict=True):
            save_png(image, folder / name, 16)
    return drawn


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Draw the sample pictures.")
    parser.add_argument("--out", type=Path, default=IMAGES, help="folder to write to")
    parser.add_argument("--clips", type=Path, default=CLIPS, help="folder to write the clips to")
    parser.add_argument("--only", choices=RENDERED, help="draw one picture")
    parser.add_argument("--photos", type=Path, help="folder with the unpacked packages")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in [options.only] if options.only else RENDERED:
        try:
            image, colors = RENDERED[name]()
        except Missing as reason:
            print(f"skipped  {name}.png: {reason} is not installed")
            continue
        save_png(image, options.out / f"{name}.png", colors)
        print(f"drawn    {name}.png {image.width}x{image.height}")
    if not options.only:
        options.clips.mkdir(parents=True, exist_ok=True)
        print(f"drawn    {', '.join(name for names in draw_clips(options.clips) for name in names)}")
    for name, (source, box) in PHOTOS.items() if options.photos else ():
        photograph(options.photos / source, box, options.out / name)
        print(f"cropped  {name}")


if __name__ == "__main__":
    main()
