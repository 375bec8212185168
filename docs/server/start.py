"""What JupyterHub starts for a learner: a server in the learner's own copy of the course, which is made once.

The course itself is read only and belongs to whoever set it up. The copy has all but the packages, to which it links:
about 40 MB, so that everything works as on a laptop: links, solved exercises, what a lesson trains and saves, lab.py.
"""

import os
import shutil
import sys
from pathlib import Path

COURSE = Path(__file__).resolve().parents[2]
OWN = Path.home() / "minicpmv-ref"
LANGUAGE = os.environ.get("COURSE_LANGUAGE", "en")

if not OWN.exists():
    left_out = [".venv", ".git", ".*_cache", "__pycache__", "runs", "build", "wheels", "my_notebooks"]
    left_out += ["instructor_notebooks", "jupyterhub.sqlite", "jupyterhub_cookie_secret", "jupyterhub-proxy.pid"]
    part = OWN.with_name(OWN.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(COURSE, part, ignore=shutil.ignore_patterns(*left_out))
    part.rename(OWN)
if not os.path.lexists(OWN / ".venv"):
    (OWN / ".venv").symlink_to(COURSE / ".venv")  # else lab.py would install the packages once more
if OWN.resolve() != COURSE:  # the copy goes on, by itself: its files fit each other, also after an update of the course
    os.execv(sys.executable, [sys.executable, str(OWN / "docs/server/start.py"), *sys.argv[1:]])
os.chdir(OWN)
sys.path.insert(0, str(OWN))

from minicpmv_ref.commands import course  # noqa: E402

if LANGUAGE not in course.LANGUAGES:
    sys.exit(f"COURSE_LANGUAGE must be one of {', '.join(course.LANGUAGES)}, got {LANGUAGE!r}")
for each in dict.fromkeys([course.LANGUAGES[0], LANGUAGE]):
    course.renew_copies(OWN / "notebooks", each)
first = course.copy_of(OWN / "notebooks" / "00_one_picture.ipynb", LANGUAGE).name
os.environ.update(course.kernel_environment())
settings = OWN / "build" / "settings"
settings.mkdir(parents=True, exist_ok=True)
course.ask_nothing(settings)
words = [f"--ServerApp.root_dir={OWN}", f"--ServerApp.default_url=/lab/tree/my_notebooks/{first}"]
words += [f"--LabApp.app_settings_dir={settings}"]
words += [f"--{name}={value}" for name, value in course.SERVER.items()]
os.execv(sys.executable, [sys.executable, "-m", "jupyterhub.singleuser", *words, *sys.argv[1:]])
