"""Libraries that keep quiet while a verb runs."""

import logging
import os
import warnings

from clues.imports import TALKATIVE


def calm_imports() -> None:
    """No word of a library about itself while it is imported; costs no import."""
    logging.getLogger(TALKATIVE).setLevel(logging.ERROR)


def calm_libraries() -> None:
    """No telemetry, and no library talks over the progress bars."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging as hf_logging

    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    # The hub's retries end in an error of ours.
    for name in ("accelerate", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # PEFT asks transformers for a name that transformers has renamed; no user can act on that.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
