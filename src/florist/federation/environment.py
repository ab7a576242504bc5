"""What a run was played on: versions and machine, to reproduce it and to read its seconds by."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

_PACKAGES = ("torch", "transformers", "peft", "numpy", "flwr")


def environment() -> dict[str, str]:
    """Describe the software and the machine, without the name of the machine or of its user."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    found["system"] = f"{platform.system()} {platform.release()}"
    found["processor"] = f"{platform.machine()}, {os.cpu_count()} logical cores"
    if torch.cuda.is_available():
        found["accelerator"] = torch.cuda.get_device_name()
    return found
