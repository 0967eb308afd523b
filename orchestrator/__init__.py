"""The way from an experiment to a table: experiments, store, scheduling, tracking. It knows no model and no metric."""

import os

# Ray reads this as it is imported. Without it, whatever asks Ray for something after the end of a session, such as the
# thread of a study that was told to end, starts a Ray of its own.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
