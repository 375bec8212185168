"""The checkers of the exercises, one file for each lesson: `check.name(your_function)` prints one line.

cases.py has `@exercise`, which makes a checker of a list of cases. `check.learner("Ada")` says who you are.
"""

from ..progress import learner  # noqa: F401, I001 (in the order of the lessons)
from .cases import *  # noqa: F403
from .one_picture import *  # noqa: F403
from .slicing import *  # noqa: F403
from .vision import *  # noqa: F403
from .resampler import *  # noqa: F403
from .language import *  # noqa: F403
from .memory import *  # noqa: F403
from .packing import *  # noqa: F403
from .learning import *  # noqa: F403
from .your_data import *  # noqa: F403
from .data import *  # noqa: F403
from .alignment import *  # noqa: F403
from .q4k import *  # noqa: F403
from .phone import *  # noqa: F403
from .peers import *  # noqa: F403
from .video import *  # noqa: F403
from .later import *  # noqa: F403
from .capstone import *  # noqa: F403
