"""Libraries that would tell their makers of every use: told not to, before they are imported."""

from __future__ import annotations

import os
import sys
from typing import Any

_SWITCHES = {
    "NO_ALBUMENTATIONS_UPDATE": "1",  # asks PyPI for its newest version when it is imported
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "WANDB_ERROR_REPORTING": "false",
    "DO_NOT_TRACK": "1",
}


def stay_home() -> None:
    """Switch off what libraries send about their use; what the environment says already stays."""
    for name, value in _SWITCHES.items():
        os.environ.setdefault(name, value)


def without_telemetry() -> None:
    """Keep OpenVINO from its telemetry, which looks up an analytics host when it is imported and heeds no variable.

    Its own stand-in is used where the package is missing, and that is what it is told here.
    """
    modules: dict[str, Any] = sys.modules
    modules.setdefault("openvino_telemetry", None)
