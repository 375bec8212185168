"""Sixteen sizes that pictures really have, (width, height) in pixels."""

SIZES = {
    "icon": (64, 64),
    "thumbnail": (320, 240),
    "one view": (448, 448),
    "one column more": (449, 448),
    "VGA photo": (640, 480),
    "social media, square": (1080, 1080),
    "HD video frame": (1280, 720),
    "the paper's largest": (1344, 1344),
    "Full HD screen": (1920, 1080),
    "phone screenshot": (1170, 2532),
    "4K screen": (3840, 2160),
    "phone photo": (4032, 3024),
    "A4 scan, 300 dpi": (2480, 3508),
    "shop receipt": (600, 2400),
    "web banner": (1456, 180),
    "panorama": (8000, 1200),
}
