"""What the notebooks share: loading, measuring, recording, plotting. No technique is hidden in here.

The names are imported when they are first used: `import helpers` alone loads neither torch nor
transformers, touches no GPU and no network, and changes no global style.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "adapters": "check_lora check_prompt load_adapter save_adapter",
    "errors": "AdapterError DataError DeviceError ModelError OfflineError ParameterError TutorialError",
    "machine": "Machine choose_machine",
    "measuring": "Cost ParameterCount count_parameters fingerprint measure quantization_constants training_memory",
    "memory": "MemoryBill memory_bill require_fit",
    "models": "Classifier language_model_config load_classifier load_encoder load_language_model load_tokenizer "
    "transformer_blocks",
    "plots": "plot_bills plot_confusion plot_learning_curves plot_levels plot_lines plot_map plot_parts "
    "plot_scoreboard plot_scores",
    "quantization": "check_quantization quantized_layers",
    "records": "Record read_records record scoreboard write_records",
    "replies": "Pair grade_replies load_pairs",
    "tasks": "Task load_task",
    "training": "LossWatch group_by_length",
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names.split()}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return import_module(f".{name}", __name__)
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'helpers' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
