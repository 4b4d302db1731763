"""Several processes that talk through gloo, for the tests of what is distributed."""

import os
import tempfile
import traceback
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def together(world, work, *args):
    """`work(rank, *args)` in `world` new processes of one group; what each returns, by rank (through torch.save)."""
    with tempfile.TemporaryDirectory() as folder:
        context = mp.get_context("spawn")
        processes = [context.Process(target=_member, args=(rank, world, folder, work, args)) for rank in range(world)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(240)
        codes = [process.exitcode for process in processes]
        for process in processes:
            process.kill()
        errors = [path.read_text() for path in sorted(Path(folder).glob("error*"))]
        assert codes == [0] * world, "\n".join([f"exit codes {codes}", *errors])
        return [torch.load(Path(folder) / f"result{rank}", weights_only=True) for rank in range(world)]


def _member(rank, world, folder, work, args):
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=DeprecationWarning)
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
        torch.save(work(rank, *args), Path(folder) / f"result{rank}")
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        (Path(folder) / f"error{rank}").write_text(traceback.format_exc())
        os._exit(1)


def full(tensor):
    """`tensor`, gathered if it is sharded."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def counted(work):
    """The number of collectives in `work`."""
    from torch.distributed.tensor.debug import CommDebugMode

    with CommDebugMode() as talk:
        work()
    return talk.get_total_counts()
