"""The way from an experiment to a table: experiments, store, scheduling, tracking. It knows no model and no metric."""

import os

# A thread that outlives ray.shutdown() must fail, not start a Ray of its own. Ray reads this as it is imported, by
# whichever module of ours does so first.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
