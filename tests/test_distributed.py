"""The module tree under FSDP2: two processes train as one does."""

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing.spawn import start_processes

from graphgrow.program import Program
from tests.programs import traced

STEPS = 3


def losses(module, batches):
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    found = []
    for batch in batches:
        loss = module(**batch).logits.float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.detach())
    return torch.stack(found)


def worker(rank, path, address):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2, timeout=timedelta(seconds=300))
    try:
        program = Program.load(f"{path}/program.pt")
        mesh = init_device_mesh("cpu", (2,))
        module: Any = program.module(hierarchical=True).eval()
        for block in module.transformer.h:
            fully_shard(block, mesh=mesh)
        fully_shard(module, mesh=mesh)
        batches = [program.example({"batch": 4}, seed) for seed in range(STEPS)]
        mine = [{key: value[2 * rank : 2 * rank + 2] for key, value in batch.items()} for batch in batches]
        found = losses(module, mine)
        dist.all_reduce(found)
        names = list(module.state_dict())
        if rank == 0:
            torch.save({"losses": found / 2, "names": names}, f"{path}/result.pt")
    finally:
        dist.destroy_process_group()
    # Gloo's threads outlive the group; one that drops a tensor while the interpreter shuts down aborts the process
    # (pytorch/pytorch#179291). All that the test compares is written by now.
    os._exit(0)


def test_two_processes_train_as_one(tmp_path):
    program = traced("gpt2")
    program.save(tmp_path / "program.pt")
    expected = losses(program.module().eval(), [program.example({"batch": 4}, seed) for seed in range(STEPS)])
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    start_processes(worker, (str(tmp_path), f"file://{tmp_path}/meet"), nprocs=2, start_method="spawn")
    found = torch.load(tmp_path / "result.pt")
    torch.testing.assert_close(found["losses"], expected, rtol=1e-5, atol=1e-6)
    assert found["names"] == list(program.module().state_dict())
    assert expected[-1] < expected[0]
