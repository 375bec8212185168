"""Draw the pictures of `data_samples/images`, and crop the photographs.

    python tools/make_samples.py                    every rendered picture
    python tools/make_samples.py --only receipt     one of them
    python tools/make_samples.py --photos FOLDER    the photographs too (data_samples/README.md names FOLDER)

The same Pillow, matplotlib and fonts give the same bytes; `screenshot.png` needs the same Chromium as well.
A picture whose font or browser is missing is skipped by name.
"""

import argparse
import shutil
from pathlib import Path

from PIL import Image
from samples import pages, scenes
from samples.sheet import Missing, save_jpeg, save_png

IMAGES = Path(__file__).resolve().parent.parent / "data_samples" / "images"
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


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Draw the sample pictures.")
    parser.add_argument("--out", type=Path, default=IMAGES, help="folder to write to")
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
    for name, (source, box) in PHOTOS.items() if options.photos else ():
        photograph(options.photos / source, box, options.out / name)
        print(f"cropped  {name}")


if __name__ == "__main__":
    main()
