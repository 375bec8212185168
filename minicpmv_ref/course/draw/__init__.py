"""The pictures of the course as pure functions: values in, a `Canvas` out. Nothing here needs Jupyter.

canvas.py and colors.py have what all lessons draw with, predict.py the guesses, model.py the whole model; every other
file has the pictures of one lesson. Their public names are names of this package: `draw.Canvas`, `draw.playground`. So
no two may be the same, and none may be the name of a file.
"""

from .canvas import *  # noqa: F403, I001 (in the order of the lessons)
from .colors import *  # noqa: F403
from .predict import *  # noqa: F403
from .model import *  # noqa: F403
from .slicing import *  # noqa: F403
from .vision import *  # noqa: F403
from .resampler import *  # noqa: F403
from .language import *  # noqa: F403
from .memory import *  # noqa: F403
from .packing import *  # noqa: F403
from .learning import *  # noqa: F403
from .data import *  # noqa: F403
from .your_data import *  # noqa: F403
from .alignment import *  # noqa: F403
from .q4k import *  # noqa: F403
from .phone import *  # noqa: F403
from .peers import *  # noqa: F403
from .video import *  # noqa: F403
from .later import *  # noqa: F403
from .capstone import *  # noqa: F403
from .one_picture import *  # noqa: F403 (last: it shows something of the others)
