"""Names on the Hugging Face hub: told from mistyped paths, and not waited for where the hub can't be reached."""

from pathlib import Path

import datasets
import huggingface_hub

_SECONDS_TO_REACH = 5.0


def looks_like_path(name: str) -> bool:
    """Whether a name that nothing is found under must be a path of ours: the hub would be asked for it in vain.

    It begins like a path or with `runs/`, has more than one slash, or its first folder is there.
    """
    first, slash, rest = name.partition("/")
    return name.startswith((".", "/", "~", "runs/")) or "/" in rest or (bool(slash) and Path(first).is_dir())


def go_offline_without_hub() -> bool:
    """Ask the hub for a sign of life; without one, have its libraries use what they keep on disk, and nothing else.

    That is what HF_HUB_OFFLINE=1 does, from here on and for all of the process. Otherwise they would try for half a
    minute before they do the same.

    Returns:
        Whether the hub is left to be asked.
    """
    if not huggingface_hub.constants.HF_HUB_OFFLINE:
        try:
            huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=_SECONDS_TO_REACH)
        except Exception:  # of whichever client the library has; any answer at all is a sign of life
            huggingface_hub.constants.HF_HUB_OFFLINE = True
            datasets.config.HF_HUB_OFFLINE = True
    return not huggingface_hub.constants.HF_HUB_OFFLINE
