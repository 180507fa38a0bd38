"""Which device computes, in which precision, and what it does with memory."""

import ctypes
import sys

import torch

from cohortloom.base.errors import UserError

# Tokens of a batch that is scored; with more of them a layer's states leave the caches of a CPU.
READ_TOKENS = {"cpu": 1024, "cuda": 8192}

# transformers' name of the attention that trains fastest: on a CPU the gradient of the fused one takes five
# times as long as plain products of matrices.
TRAINING_ATTENTION = {"cpu": "eager", "cuda": "sdpa"}


def fast_products(device: torch.device) -> torch.autocast:
    """In this context a CPU that is fast in bf16 multiplies matrices in it; others mix no precisions."""
    fast = device.type == "cpu" and pick_device("cpu")[1] == "bf16"
    return torch.autocast(device.type, torch.bfloat16, enabled=fast)


def pick_device(device: str, devices: int = 1, precision: str = "auto") -> tuple[str, str]:
    """Device name (`cpu` or `cuda`) for auto, cpu or cuda, and the mixed precision that is fast on it.

    bf16 on a GPU that has it and on a CPU with instructions for it (AMX, AVX512-BF16); elsewhere float32 is
    faster ("no"). With `precision` float32 it is "no" everywhere. For a GPU it also turns cuDNN's attention
    off, in the whole process. Raises UserError where a GPU is asked for and none is there, and where fewer
    than `devices` are.
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
    # cuDNN's attention plans anew for each shape that it has not met, and hardly two steps have the same.
    torch.backends.cuda.enable_cudnn_sdp(False)
    return "cuda", "bf16" if torch.cuda.is_bf16_supported() and precision == "auto" else "no"


def keep_freed_memory() -> None:
    """Keep freed memory in this process, where the C library is glibc.

    Each training step asks for the same large blocks; glibc would give them back to the system at once and
    have every page cleared again, which takes a fifth of a step.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
