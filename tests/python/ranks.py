"""Processes of a gloo group for tests: forked, so that PyTorch is imported once. The parent computes nothing: OpenMP's threads do not
live through a fork."""

import datetime
import multiprocessing
import os
import signal
import tempfile
import time
import traceback

import torch
import torch.distributed as dist

os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


def _rank(function, rank, ranks, store, arguments):
    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks, timeout=limit)
    try:
        function(rank, *arguments)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)  # without waiting for ranks that may be dead


def on_ranks(ranks, function, *arguments, limit=90):
    """Calls function(rank, *arguments) in so many processes. Returns their exit codes; those that hang are killed: -9."""
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        started = [context.Process(target=_rank, args=(function, r, ranks, f"{folder}/store", arguments)) for r in range(ranks)]
        for process in started:
            process.start()
        end = time.monotonic() + limit
        for process in started:
            process.join(max(0.0, end - time.monotonic()))
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
                process.join()
    return [process.exitcode for process in started]
