"""Runtime environments: what a task, an actor or a whole job finds in its process beside noded itself.

`RuntimeEnv` is what users may write in place of a plain dict; `validate` and `merge` are for those who take one. How
local directories become packages is in `packages.py`; how a worker takes an environment on is not here: see
`noded/node/runtime_envs.py` and `noded/worker/environment.py`. Importing this package is cheap.
"""

from noded.runtime_env.env import RuntimeEnv, RuntimeEnvConfig
from noded.runtime_env.fields import merge, validate

__all__ = ["RuntimeEnv", "RuntimeEnvConfig", "merge", "validate"]
