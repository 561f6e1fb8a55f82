"""What the notebooks share: loading, training as shown, measuring, recording, plotting. No technique is hidden in here.

The import settles what must be settled before torch (see `environment`); it touches no GPU and no network.
"""

from . import environment

environment.prepare()

from . import errors, plots  # noqa: E402  (torch must come after `prepare`)
from .adapters import load_adapter, save_adapter  # noqa: E402
from .docstrings import load_docstrings  # noqa: E402
from .exercises import check  # noqa: E402
from .machine import choose_machine  # noqa: E402
from .measuring import count_parameters, fingerprint, training_memory  # noqa: E402
from .memory import memory_bill  # noqa: E402
from .models import load_classifier, load_encoder, load_language_model, transformer_blocks  # noqa: E402
from .scoreboard import Scoreboard  # noqa: E402
from .tasks import load_task  # noqa: E402
from .training import each_batch, fit, generate, predict  # noqa: E402
from .waiting import progress  # noqa: E402

__all__ = [
    "Scoreboard",
    "check",
    "choose_machine",
    "count_parameters",
    "each_batch",
    "errors",
    "fingerprint",
    "fit",
    "generate",
    "load_adapter",
    "load_classifier",
    "load_docstrings",
    "load_encoder",
    "load_language_model",
    "load_task",
    "memory_bill",
    "plots",
    "predict",
    "progress",
    "save_adapter",
    "training_memory",
    "transformer_blocks",
]
