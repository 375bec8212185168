"""The panels of the lessons, one file for each lesson. How a panel works: ../panel.py. How it looks: ../draw.

All panels are names of this package: `panels.SlicingPlayground`. A panel that needs torch imports it inside its
methods, so that the first lessons start in a second.
"""

from .one_picture import *  # noqa: F403, I001 (in the order of the lessons)
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
