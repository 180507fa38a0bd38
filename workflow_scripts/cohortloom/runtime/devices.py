"""The device of a computation, its precision and its memory."""

import ctypes
import sys

import torch

from cohortloom.base.errors import UserError

# Target tokens of a scored batch; with more, the states of a layer do not fit into the caches of a CPU.
READ_TOKENS = {"cpu": 1024, "cuda": 8192}

# transformers' name of the attention that trains fastest. On a CPU the gradient of the fused attention takes
# five times as long as plain matrix products.
TRAINING_ATTENTION = {"cpu": "eager", "cuda": "sdpa"}


def fast_products(device: torch.device) -> torch.autocast:
    """Context in which a CPU with fast bf16 multiplies matrices in bf16; no effect on other devices."""
    fast = device.type == "cpu" and pick_device("cpu")[1] == "bf16"
    return torch.autocast(device.type, torch.bfloat16, enabled=fast)


def pick_device(device: str, devices: int = 1, precision: str = "auto") -> tuple[str, str]:
    """Device name (`cpu` or `cuda`) for auto, cpu or cuda, and the mixed precision that is fast on it.

    bf16 on a GPU that has it and on a CPU with instructions for it (AMX, AVX512-BF16); "no" elsewhere, where
    float32 is faster, and with `precision` float32. For a GPU, cuDNN's attention is turned off in the whole
    process. Raises UserError if a GPU is requested and none is visible, or fewer than `devices`.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device: cuda is asked for, but no GPU is visible; set device: cpu or auto")
    if device == "cpu" or not torch.cuda.is_available():
        fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
        return "cpu", "bf16" if fast and precision == "auto" else "no"
    if torch.cuda.device_count() < devices:
        raise UserError(
            f"train.devices: {devices} GPUs are asked for, but {torch.cuda.device_count()} visible; "
            "on Slurm set `gpu` of the rule train to as many"
        )
    # cuDNN's attention makes a plan for each new shape, and almost every step has another shape.
    torch.backends.cuda.enable_cudnn_sdp(False)
    return "cuda", "bf16" if torch.cuda.is_bf16_supported() and precision == "auto" else "no"


def keep_freed_memory() -> None:
    """Keep freed memory in this process, if the C library is glibc.

    Each training step allocates the same large blocks. By default glibc returns them to the system at once,
    and every page is cleared again, which takes a fifth of a step.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
