"""The GPU of this machine, asked of the CUDA driver itself: no toolkit, no torch, no bindings.

TensorRT's runtime hands out an object that crashes the process when there is no driver, so nothing
of it may be made before `find_gpu` has found one. Never run on a GPU by us.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from slimdeploy.errors import MissingError

_LIBRARY = "libcuda.so.1"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        name: as the driver gives it.
        compute_capability: (major, minor).
        driver_cuda: the newest CUDA version the driver runs, as (major, minor).
        free_bytes: free memory now; 0 if the driver would not say.
        total_bytes: all of its memory; 0 likewise.
    """

    name: str
    compute_capability: tuple[int, int]
    driver_cuda: tuple[int, int]
    free_bytes: int
    total_bytes: int = 0

    @property
    def sm(self) -> str:
        """The architecture as compilers spell it: sm_87."""
        return "sm_{}{}".format(*self.compute_capability)

    def to_json(self) -> dict[str, Any]:
        """A plain record."""
        return asdict(self)


def find_gpu(device: int = 0) -> Gpu:
    """The GPU numbered `device`.

    Raises:
        MissingError: if there is no driver, or it has no such device; it says which.
    """
    try:
        cuda = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise MissingError(
            f"this machine has no NVIDIA driver ({_LIBRARY} is not there): run on one with a GPU"
        ) from error
    _check(cuda, cuda.cuInit(0), "start")
    count = ctypes.c_int()
    _check(cuda, cuda.cuDeviceGetCount(ctypes.byref(count)), "count its GPUs")
    if device >= count.value:
        raise MissingError(f"GPU {device} is not there: the driver sees {count.value}")
    handle = ctypes.c_int()
    _check(cuda, cuda.cuDeviceGet(ctypes.byref(handle), device), "open the GPU")
    name = ctypes.create_string_buffer(128)
    _check(cuda, cuda.cuDeviceGetName(name, len(name), handle), "name the GPU")
    capability = _attribute(cuda, handle, _MAJOR), _attribute(cuda, handle, _MINOR)
    version = ctypes.c_int()
    _check(cuda, cuda.cuDriverGetVersion(ctypes.byref(version)), "tell its version")
    supported = version.value // 1000, version.value % 1000 // 10
    return Gpu(name.value.decode(), capability, supported, *_memory(cuda, handle))


def gpu_or_none() -> Gpu | None:
    """The first GPU, or None where there is none."""
    with suppress(MissingError):
        return find_gpu()
    return None


def _attribute(cuda: ctypes.CDLL, handle: ctypes.c_int, number: int) -> int:
    value = ctypes.c_int()
    status = cuda.cuDeviceGetAttribute(ctypes.byref(value), number, handle)
    _check(cuda, status, "describe the GPU")
    return value.value


def _memory(cuda: ctypes.CDLL, handle: ctypes.c_int) -> tuple[int, int]:
    """Free memory, and all of it.

    Asking needs a context; the primary one is shared with whatever runs next.
    """
    context, free, total = ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
    if cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), handle):
        return 0, 0
    try:
        if cuda.cuCtxPushCurrent_v2(context):
            return 0, 0
        failed = cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
        cuda.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
        return (0, 0) if failed else (free.value, total.value)
    finally:
        cuda.cuDevicePrimaryCtxRelease_v2(handle)


def _check(cuda: ctypes.CDLL, status: int, what: str) -> None:
    if status:
        text = ctypes.c_char_p()
        cuda.cuGetErrorName(status, ctypes.byref(text))
        reason = (text.value or b"unknown").decode()
        raise MissingError(f"the NVIDIA driver could not {what}: {reason} ({status})")
