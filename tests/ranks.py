"""What the processes of the distributed tests do; a module of its own, since each of them imports it."""

import os
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import modeling_calm.modeling_calm as modeling
from modeling_calm import CalmConfig, CalmForPreTraining, CalmForSequenceClassification
from processing import CalmProcessor, DataCollatorForCalmClassification

CONFIGS = Path(__file__).parents[1] / "examples" / "configs" / "accelerate"


def run_ranks(job: Callable, number: int, folder: Path, **given) -> list:
    """What `job(**given)` returns on each of `number` processes that reach each other through gloo."""
    # Forked from one process that has imported these, they start within a second.
    torch.multiprocessing.set_forkserver_preload(["modeling_calm", "transformers.trainer", "datasets"])
    folder.mkdir()
    torch.multiprocessing.start_processes(
        _one_rank, (number, str(folder), job, given), number, start_method="forkserver"
    )
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(number)]


def _one_rank(rank: int, number: int, folder: str, job: Callable, given: dict) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(number), LOCAL_WORLD_SIZE=str(number), OMP_NUM_THREADS="1"
    )
    # A rank that waits for another in vain fails after three minutes, where the library would wait half an hour.
    modeling.WORDS_AT_ONCE = 4  # of the toys' 25, so that chunks have several tiles
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=number, timeout=timedelta(minutes=3)
    )
    torch.save(job(**given), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def num_ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def build(case: dict) -> CalmForPreTraining:
    """The model of a case, with what its stage leaves out of training frozen."""
    model = CalmForPreTraining(CalmConfig(**case["config"]))
    model.load_state_dict(case["weights"])
    if not model.config.masked_language_loss_weight:  # the align stage, as examples/pretrain.py freezes it
        for module in (model.calm.text_model, model.lm_head, model.acoustic_head):
            module.requires_grad_(False)
        model.calm.audio_model.mask_embedding.requires_grad_(False)
    return model.train()


def gradients(cases: Path) -> dict[str, tuple[torch.Tensor, dict]]:
    """Loss and gradients of a step of every case; by `DistributedDataParallel` if there are several ranks.

    The `steps` of a case are the batches that are accumulated, each a list of the parts of the ranks.
    """
    results = {}
    for name, case in torch.load(cases).items():
        model = build(case)
        wrapped = DistributedDataParallel(model) if num_ranks() > 1 else model
        total = torch.zeros(())
        for parts in case["steps"]:
            last = parts is case["steps"][-1]
            with nullcontext() if last or num_ranks() == 1 else wrapped.no_sync():
                loss = wrapped(**parts[dist.get_rank() if num_ranks() > 1 else 0]).loss / len(case["steps"])
                loss.backward()
            total += loss.detach()
        if num_ranks() > 1:
            dist.all_reduce(total)
        results[name] = total / num_ranks(), {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    return results


def pretrained(case: Path, clips: int, sharded: bool = False, **settings) -> dict:
    """`CalmTrainer` on the `batch` of a case, `clips` clips at a time over all ranks; see [`train`]."""
    case = torch.load(case)

    def collate(rows: list[dict], generator=None) -> dict[str, torch.Tensor]:
        return {key: value[[row["row"] for row in rows]] for key, value in case["batch"].items()}

    rows = [{"row": row} for row in range(len(case["batch"]["input_ids"]))]
    return train(build(case), rows, collate, clips, sharded, label_names=["input_ids"], **settings)


def finetuned(case: Path, clips: int, sharded: bool = False, **settings) -> dict:
    """`CalmTrainer` on the `rows` of a classifier's case, in their order; see [`train`]."""
    case = torch.load(case, weights_only=False)
    model = CalmForSequenceClassification(CalmConfig(**case["config"]))
    model.load_state_dict(case["weights"])
    model.calm.audio_model.mask_embedding.requires_grad_(False)
    processor = CalmProcessor.from_pretrained(case["processor"])
    collate = DataCollatorForCalmClassification(processor)
    settings |= {"train_sampling_strategy": "sequential"}
    return train(model, case["rows"], collate, clips, sharded, **settings)


def train(model, rows: list[dict], collate: Callable, clips: int, sharded: bool, **settings) -> dict:
    """Training, scoring and saving by `CalmTrainer`.

    Args:
        sharded: by FSDP2, as examples/configs/accelerate/fsdp2.yaml has it.
        settings: of the training, `mixed_precision` besides.

    Returns:
        The losses, the scores, and the share of the parameters that this rank holds.
    """
    from accelerate.state import DistributedType, PartialState
    from datasets import Dataset
    from options import CalmTrainingArguments
    from training import CalmTrainer

    precision = settings.pop("mixed_precision", "no")
    arguments = CalmTrainingArguments(
        use_cpu=True, per_device_train_batch_size=clips // num_ranks(), remove_unused_columns=False, report_to="none",
        logging_steps=1, disable_tqdm=True, dataloader_drop_last=True, dataloader_pin_memory=False,
        lr_scheduler_type="constant", per_device_eval_batch_size=3, **{"save_strategy": "no"} | settings,
    )  # fmt: skip
    os.environ["ACCELERATE_MIXED_PRECISION"] = precision
    if sharded:
        os.environ.update(environment_of("fsdp2.yaml", precision))
        # accelerate shards on GPUs alone; where it takes these for some, it does here what it does there.
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    data = Dataset.from_list(rows)
    trainer = CalmTrainer(
        model=model, args=arguments, train_dataset=data, eval_dataset=data, data_collator=collate,
        eval_collator=collate,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=arguments.resume or None)
    parameters = list(trainer.model.parameters())
    held = sum(getattr(parameter, "_local_tensor", parameter).numel() for parameter in parameters)
    prediction = trainer.predict(data)
    trainer.save_model()
    return {
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "predictions": prediction.predictions,
        "share": held / sum(parameter.numel() for parameter in parameters),
    }


def environment_of(file: str, precision: str) -> dict[str, str]:
    """The variables by which `accelerate launch` tells a script of a configuration file."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    options = ["--config_file", str(CONFIGS / file), "--mixed_precision", precision, "script.py"]
    environment = prepare_multi_gpu_env(_validate_launch_command(launch_command_parser().parse_args(options))[0])
    return {name: value for name, value in environment.items() if name.startswith(("ACCELERATE", "FSDP"))}
