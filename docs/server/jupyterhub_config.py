"""JupyterHub for a class: who logs in gets a copy of the course. docs/server.md says how to use it and what was tested.

With TheLittlestJupyterHub, copy this file to /opt/tljh/config/jupyterhub_config.d/.
"""

COURSE = "/opt/minicpmv-ref"  # a clone in which lab.py has made .venv, readable by everybody

c = get_config()  # noqa: F821  JupyterHub defines it
c.PAMAuthenticator.allow_all = True  # who has an account on this machine may log in; JupyterHub's default is nobody
c.Spawner.cmd = [f"{COURSE}/.venv/bin/python", f"{COURSE}/docs/server/start.py"]
c.Spawner.environment = {
    "COURSE_LANGUAGE": "en",  # of the lessons; with "zh", the translated ones stand beside the others
    "OMP_NUM_THREADS": "1",  # twenty learners share the cores
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that wait must not spin
}
# A kernel for every open lesson is the memory that a class wastes: idle ones stop. The lesson stays; run it again.
c.Spawner.args = [
    "--MappingKernelManager.cull_idle_timeout=1200",
    "--MappingKernelManager.cull_interval=60",
    "--MappingKernelManager.cull_connected=True",
    "--LabApp.extension_manager=readonly",
]
c.Spawner.mem_limit = "2G"  # systemd (TheLittlestJupyterHub) and containers keep it; plain processes do not
c.Spawner.start_timeout = c.Spawner.http_timeout = 120  # twenty servers start at once
