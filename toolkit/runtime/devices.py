"""Devices: what runs ONNX on them, in which precisions, with which options, and which of them is here."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from toolkit.errors import DeviceError


@dataclass(frozen=True)
class Provider:
    """A way to run ONNX: onnxruntime's name for it, its options, how many images it takes at a time unless told.

    `precisions` are what it computes in, each with the options that asks for. Without a name, the runtime is OpenVINO's own.
    """

    execution: str
    options: Mapping[str, str]
    batch: int
    precisions: Mapping[str, Mapping[str, str]]


PROVIDERS: dict[str, Provider] = {
    # batch 8 beat 32 on two cores with five models (one-thread sessions, 160 against 157 passes/s)
    "cpu": Provider("CPUExecutionProvider", {}, 8, {"fp32": {}, "int8": {}}),
    # onnxruntime lets Ampere and later round fp32 products to TF32 (gaps of 1e-3) unless told otherwise; it has no bf16 kernels
    # for most of what networks for images are made of
    "cuda": Provider("CUDAExecutionProvider", {"use_tf32": "0", "prefer_nhwc": "1"}, 64, {"fp32": {}, "fp16": {}}),
    "tensorrt": Provider(
        "TensorrtExecutionProvider", {}, 64, {"fp32": {}, "fp16": {"trt_fp16_enable": "1"}, "bf16": {"trt_bf16_enable": "1"}}
    ),
    # left to itself, OpenVINO may compute fp32 models in bf16
    "openvino": Provider(
        "", {}, 8, {"fp32": {"INFERENCE_PRECISION_HINT": "f32"}, "bf16": {"INFERENCE_PRECISION_HINT": "bf16"}}
    ),
}

# the precisions, and what they mean
PRECISIONS: dict[str, str] = {
    "fp32": "as exported",
    "fp16": "half precision on a GPU",
    "bf16": "bfloat16: OpenVINO on CPUs that have it, TensorRT",
    "int8": "weights and activations in 8 bits, calibrated on training images; onnxruntime on the CPU",
}


def choose_device(device: str) -> str:
    """A name from PROVIDERS for what the user asked; "auto" is "cuda" if the driver counts a GPU, else "cpu".

    Raises:
        DeviceError: an unknown name, a GPU was asked for and the driver counts none, or OpenVINO and it is not installed.
    """
    if device == "auto":
        return "cuda" if gpu_count() else "cpu"
    if device not in PROVIDERS:
        raise DeviceError(f"unknown device {device!r}", hint=f"Use auto or one of: {', '.join(PROVIDERS)}.")
    if device == "openvino":
        engine_tag(device)
    elif device != "cpu" and not gpu_count():
        raise DeviceError(
            f"{device} was asked for, but no CUDA device can be used here",
            hint="`toolkit doctor` says why; the CPU is always there.",
            code="device-cpu",
        )
    return device


def check_precision(device: str, precision: str) -> None:
    """See that a device computes in a precision.

    Raises:
        DeviceError: it does not, and which devices do.
    """
    if precision not in PRECISIONS:
        raise DeviceError(f"unknown precision {precision!r}", hint=f"Use auto or one of: {', '.join(PRECISIONS)}.")
    if precision not in PROVIDERS[device].precisions:
        able = [name for name, provider in PROVIDERS.items() if precision in provider.precisions]
        raise DeviceError(
            f"{device} does not compute in {precision}, only in {', '.join(PROVIDERS[device].precisions)}",
            hint=f"{precision} takes {' or '.join(able)}.",
            code="precision-device",
        )


def available() -> list[str]:
    """The devices that can be used here, of those that "auto" chooses from (TensorRT builds engines for minutes)."""
    devices = ["cpu"]
    with contextlib.suppress(DeviceError):
        devices.append(choose_device("openvino"))
    return devices + (["cuda"] if gpu_count() else [])


def gpu_count() -> int:
    """How many GPUs the CUDA driver counts; asked directly, since importing torch for this would take two seconds."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        count = ctypes.c_int()
        ready = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    except (OSError, AttributeError):
        return 0
    return count.value if ready else 0


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def engine_tag(device: str) -> str:
    """What computes on a device, as it stands in the store's keys: the runtime's version and the provider.

    Raises:
        DeviceError: the runtime is not installed.
    """
    if device == "openvino":
        try:
            return f"openvino{version('openvino')}-cpu"
        except PackageNotFoundError:
            raise DeviceError(
                "openvino was asked for, and OpenVINO is not installed",
                hint="Install it: pip install openvino.",
            ) from None
    for name in ("onnxruntime-gpu", "onnxruntime"):
        with contextlib.suppress(PackageNotFoundError):
            return f"onnxruntime{version(name)}-{device}"
    raise DeviceError("onnxruntime is not installed", hint="Install toolkit again with its dependencies.")
