"""What the command line asks of the process's allocator, which a library must leave to its caller."""

import torch


def keep_freed_memory() -> None:
    """Have glibc keep the stacks that one module frees for those of the next.

    By default glibc gives blocks of a few megabytes back to the kernel and takes them anew, page by page: of 14 ms for
    a 4096 x 4096 module with 8 clients, 3 ms went there. It raises its limits for the whole process to the largest
    block that it has seen freed, up to 32 MB. The block here is freed at once and never written to, so that it takes
    microseconds and no memory. Other allocators are not affected.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)
