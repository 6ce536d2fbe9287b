"""Training on several ranks is the training of one process that holds the whole batch, sharded or not."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pretrain
import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from example_helpers import load_json, run
from model_helpers import ALIGN
from ranks import CONFIGS, finetuned, gradients, pretrained, run_ranks
from safetensors.torch import load_file

from modeling_calm import CalmConfig, CalmForPreTraining, CalmForSequenceClassification

pytest_plugins = ["example_fixtures"]

# Biases that shift all scores of a softmax alike: their gradient is rounding, of which AdamW makes whole steps.
IDLE = ("k_proj.bias", "key.bias", "head_scores.bias")
SGD = {"optim": "sgd", "learning_rate": 0.1, "head_learning_rate": 0.1, "text_learning_rate": 0.1}
ADAMW = {"learning_rate": 1e-3, "head_learning_rate": 1e-3, "text_learning_rate": 1e-3}


def assert_same(
    actual: dict[str, torch.Tensor],
    expected: dict[str, torch.Tensor],
    tolerance: float = 1e-5,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Every tensor within a relative error, beside the rounding that all of them together let expect.

    Of changes of `weights`, these are rounded too: by the last digit of a number much larger than its change.
    """
    assert actual.keys() == expected.keys()
    rounding = 1e-7 * torch.stack([value.norm() for value in expected.values()]).norm()
    for name, value in expected.items():
        error, digit = (actual[name] - value).norm(), 0 if weights is None else 2**-23 * weights[name].norm()
        assert error <= tolerance * value.norm() + rounding + digit, f"{name}: {error} beside {value.norm()}"


@pytest.fixture(scope="module")
def toy(audio_config_values) -> dict:
    """Configuration and weights of a toy without dropout."""
    text = {
        "vocab_size": 30, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48,
        "max_position_embeddings": 48, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    audio = audio_config_values | {"hidden_dropout_prob": 0.0, "num_hidden_layers": 1, "num_context_layers": 1}
    config = {
        "audio_config": audio, "text_config": text, "special_token_ids": [0, 1, 2, 3, 4], "classifier_dropout": 0.0,
        "transcript_loss_weight": 1.0,
    }  # fmt: skip
    torch.manual_seed(0)
    return {"config": config, "weights": CalmForPreTraining(CalmConfig(**config)).state_dict()}


@pytest.fixture(scope="module")
def compare_steps(toy, pretraining_batch, select, tmp_path_factory):
    """`compare_steps(ranks)`: {case: (loss, gradients)} of one process, and of `ranks` of them."""

    def draw(clips: int, seed: int) -> dict[str, torch.Tensor]:
        words = [2 + (5 * row + seed) % 6 for row in range(clips)]
        batch = pretraining_batch(words, [1 + (3 * row + seed) % 4 for row in range(clips)], seed)
        for key in ("input_ids", "labels", "attention_mask"):
            batch[key][-1] = batch[key][0]  # a transcript that stands on the first and on the last rank
        return batch

    def compare(ranks: int) -> tuple[dict, dict]:
        clips, folder = 4 * ranks, tmp_path_factory.mktemp("steps")
        even = [list(range(4 * rank, 4 * rank + 4)) for rank in range(ranks)]
        pairs = [[row, row + 1] for row in range(2 * ranks + 2, clips, 2)]
        uneven = [list(range(2 * ranks + 2)), *pairs]  # two clips on every rank but the first
        four = [draw(clips, seed) for seed in range(4)]
        unpaired, silent, unmasked, bare = (draw(clips, seed) for seed in (4, 5, 6, 7))
        unpaired["pair_indices"][even[-1]] = silent["pair_indices"][even[-1]] = -1
        silent["input_features_mask"][even[-1]] = 0
        for key, nothing in (("labels", -100), ("mask_time_indices", False)):
            unmasked[key][even[-1]] = bare[key][:] = nothing
        bare["pair_indices"][:] = -1
        drawn = {
            "even": ({}, even, four[:1]),
            "uneven": ({}, uneven, four[:1]),
            "chunks": ({"contrastive_chunk_size": 2}, even, four[:1]),
            "uneven, chunks": ({"contrastive_chunk_size": ranks + 1}, uneven, four[:1]),  # two chunks on every rank
            "four batches a step": ({}, even, four),
            "four batches of chunks a step": ({"contrastive_chunk_size": 3}, even, four),
            "a rank without pairs": ({}, even, [unpaired]),
            "a rank without audio": ({}, even, [silent]),
            "a rank without masks": ({}, even, [unmasked]),
            "neither pairs nor masks": ({}, even, [bare]),
        }
        one, several = {}, {}
        for stage, weights in (("align", ALIGN), ("fuse", {})):
            config = toy["config"] | weights
            for name, (settings, parts, batches) in drawn.items():
                key = f"{stage}, {name}"
                one[key] = toy | {"config": config, "steps": [[batch] for batch in batches]}
                steps = [[select(batch, rows) for rows in parts] for batch in batches]
                several[key] = toy | {"config": config | settings, "steps": steps}
        torch.save(one, folder / "one")
        torch.save(several, folder / "several")
        results = run_ranks(gradients, ranks, folder / "ranks", cases=folder / "several")
        return gradients(folder / "one"), results[0]

    return compare


def assert_same_steps(one: dict, several: dict) -> None:
    assert one.keys() == several.keys()
    for case, (loss, expected) in one.items():
        assert several[case][0].item() == pytest.approx(loss.item(), rel=1e-5), case
        assert loss > 0
        assert_same(several[case][1], expected)
    assert one["align, even"][1]["reader.blank_embedding"].any()  # some transcripts fit into their clips


def test_two_ranks_give_the_loss_and_the_gradient_of_one_process(compare_steps):
    """Otherwise training on two GPUs is another method than on one: fewer negatives, or a gradient of another size.

    Both stages; unequal parts and paddings, chunks, accumulation, ranks that lack what others have.
    """
    assert_same_steps(*compare_steps(2))


@pytest.mark.slow
def test_four_ranks_give_the_loss_and_the_gradient_of_one_process(compare_steps):
    assert_same_steps(*compare_steps(4))


@pytest.fixture(scope="module")
def cases(toy, pretraining_batch, tmp_path_factory) -> dict:
    """Files of cases for the Trainer: 32 clips in each stage, in chunks besides."""
    folder = tmp_path_factory.mktemp("cases")
    batch = pretraining_batch([2 + 5 * row % 6 for row in range(32)], [1 + 3 * row % 4 for row in range(32)])
    settings = {"align": ALIGN, "fuse": {}, "chunks": {"contrastive_chunk_size": 2}}
    for name, values in settings.items():
        torch.save(toy | {"config": toy["config"] | values, "batch": batch}, folder / name)
    return {name: folder / name for name in settings}


def assert_same_training(toy: dict, one, several, tolerance: float = 1e-5) -> None:
    """The same change of the weights between two checkpoints and what they started from."""

    def change(folder) -> dict[str, torch.Tensor]:
        weights = load_file(folder / "model.safetensors")
        return {name: value - toy["weights"][name] for name, value in weights.items() if not name.endswith(IDLE)}

    expected = change(one)
    assert sum(value.any() for value in expected.values()) > 20
    assert_same(change(several), expected, tolerance, weights=toy["weights"])


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize(
    ("case", "ranks", "settings"),
    [
        pytest.param("fuse", 2, SGD | {"gradient_accumulation_steps": 2}, id="fuse, two batches a step"),
        pytest.param("fuse", 2, SGD | {"gradient_accumulation_steps": 4}, id="four batches", marks=pytest.mark.slow),
        pytest.param("fuse", 4, SGD, id="fuse, four ranks", marks=pytest.mark.slow),
        pytest.param("align", 4, SGD, id="align, four ranks", marks=pytest.mark.slow),
        pytest.param("align", 2, SGD, id="align", marks=pytest.mark.slow),
        pytest.param("chunks", 2, SGD, id="chunks", marks=pytest.mark.slow),
        pytest.param("fuse", 2, ADAMW, id="fuse, AdamW", marks=pytest.mark.slow),
    ],
)
def test_the_trainer_trains_on_ranks_what_it_trains_on_one(toy, cases, tmp_path, case, ranks, settings, sharded):
    """By DDP and sharded by FSDP2, four steps: the same losses, predictions and weights.

    A rank of two holds half of the parameters when they are sharded, and the checkpoint is one like any other.
    """
    tolerance = 1e-4 if settings is ADAMW else 1e-5  # AdamW divides by gradients, small ones too
    settings = settings | {"case": cases[case], "clips": 8, "max_steps": 4}
    one = pretrained(**settings, output_dir=str(tmp_path / "one"))
    several = run_ranks(
        pretrained, ranks, tmp_path / "ranks", **settings, output_dir=str(tmp_path / "two"), sharded=sharded
    )
    assert_same_training(toy, tmp_path / "one", tmp_path / "two", tolerance)
    for rank in several:
        assert rank["losses"] == pytest.approx(one["losses"], rel=1e-5)
        assert rank["share"] == pytest.approx(1 / ranks if sharded else 1.0, abs=0.02)
        for embeds, expected in zip(rank["predictions"], one["predictions"], strict=True):
            assert embeds == pytest.approx(expected, abs=1e-4)
    files = {file.name for file in (tmp_path / "two").iterdir()}
    assert files == {file.name for file in (tmp_path / "one").iterdir()} >= {"modeling_calm.py", "model.safetensors"}
    CalmForPreTraining.from_pretrained(tmp_path / "two")


@pytest.mark.parametrize("sharded", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_rank_whose_batch_lacks_a_modality_does_not_stop_the_others(toy, processor, noise, tmp_path, sharded):
    """Its SpecTran must run all the same, for the others wait for its part: of the gradient, or of the weights."""
    processor.save_pretrained(tmp_path / "processor")
    texts = ["red cat", "one two", "stop", "the dog ran", "go left", "a tree", "blue mat", "six"]
    rows = [
        {"row": i, "text": None if i == 3 else text, "audio": None if i in (0, 5, 6) else noise(0.2 + i / 20, i),
         "label": i % 2}
        for i, text in enumerate(texts)
    ]  # fmt: skip
    torch.manual_seed(0)
    weights = CalmForSequenceClassification(CalmConfig(**toy["config"])).state_dict()
    case = {**toy, "weights": weights, "rows": rows, "processor": str(tmp_path / "processor")}
    torch.save(case, tmp_path / "case")
    settings = SGD | {"case": tmp_path / "case", "clips": 2, "max_steps": 4}
    one = finetuned(**settings, output_dir=str(tmp_path / "one"))
    several = run_ranks(
        finetuned, 2, tmp_path / "ranks", **settings, output_dir=str(tmp_path / "two"), sharded=sharded
    )
    assert several[0]["losses"] == pytest.approx(one["losses"], rel=1e-5)
    assert several[0]["predictions"] == pytest.approx(one["predictions"], abs=1e-5)
    assert_same_training(case, tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_a_sharded_run_goes_on_where_it_stopped(cases, tmp_path):
    """The state of the optimizer is sharded too; half of it lost would show as another run."""
    settings = ADAMW | {"case": cases["fuse"], "clips": 8, "max_steps": 4, "sharded": True}
    whole, first, second = (
        run_ranks(pretrained, 2, tmp_path / f"ranks_{name}", **settings | more)[0]["losses"]
        for name, more in {
            "whole": {"output_dir": str(tmp_path / "whole")},
            "first": {
                "output_dir": str(tmp_path / "run"), "max_steps": 2, "save_strategy": "steps", "save_steps": 2,
                "eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True,
            },
            "second": {"output_dir": str(tmp_path / "run"), "resume": True},
        }.items()
    )  # fmt: skip
    assert first == whole[:2]
    assert second == whole
    last, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("run", "whole"))
    assert all(torch.equal(last[name], value) for name, value in expected.items())


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True])
def test_half_precision_over_two_ranks_stays_near(cases, tmp_path, sharded):
    """bfloat16 as on GPUs: under FSDP2 the weights themselves are half floats while they compute."""
    settings = ADAMW | {"case": cases["chunks"], "clips": 8, "max_steps": 4}
    one = pretrained(**settings, output_dir=str(tmp_path / "one"))
    several = run_ranks(
        pretrained, 2, tmp_path / "ranks", **settings, output_dir=str(tmp_path / "two"), sharded=sharded,
        mixed_precision="bf16",
    )  # fmt: skip
    assert several[0]["losses"] == pytest.approx(one["losses"], rel=0.05)
    assert load_file(tmp_path / "two" / "model.safetensors")["logit_scale"].dtype == torch.float32


@pytest.mark.parametrize(
    ("file", "processes", "machines", "sharded"),
    [
        ("cpu_2", 2, 1, False),
        ("gpu_1", 1, 1, False),
        ("gpu_8", 8, 1, False),
        ("fsdp2", 8, 1, True),
        ("nodes", 32, 4, False),
    ],
)
def test_accelerate_reads_the_configurations(file, processes, machines, sharded):
    options = launch_command_parser().parse_args(["--config_file", str(CONFIGS / f"{file}.yaml"), "script.py"])
    options, _, _ = _validate_launch_command(options)
    assert (options.num_processes, options.num_machines, options.use_fsdp) == (processes, machines, sharded)
    assert options.multi_gpu == (processes > 1 and not sharded)
    assert options.mixed_precision == ("no" if file == "cpu_2" else "bf16")


@pytest.mark.slow
@pytest.mark.parametrize("machines", [1, 2])
def test_the_launcher_trains_on_two_processes_what_one_trains(corpus, new_model, own_cache, tmp_path, machines):
    """The commands of the documentation, on processes of one machine or of two; the second "machine" is this one."""
    options = [*new_model, "--audio_audio_loss_weight", "0", "--use_cpu", "true"]  # pairs are drawn batch by batch
    run(pretrain, corpus, tmp_path / "one", *options, steps=4)
    options += ["--contrastive_chunk_size", "2"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    file, several = ("nodes", ["--num_machines", "2", "--num_processes", "2"]) if machines == 2 else ("cpu_2", [])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    processes = []
    for rank in range(machines):
        where = ["--machine_rank", str(rank), "--main_process_ip", "127.0.0.1"] if machines == 2 else []
        command = [
            sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{file}.yaml"),
            *several, *where, "--main_process_port", str(port), "--mixed_precision", "no",
            str(Path(pretrain.__file__)), "--dataset", corpus, "--output_dir", str(tmp_path / "two"), *options,
            "--max_steps", "4", "--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false",
            "--per_device_train_batch_size", "4", "--dataloader_num_workers", "0", "--no_augment", "--learning_rate",
            "3e-3", "--logging_steps", "1", "--disable_tqdm", "true",
        ]  # fmt: skip
        processes.append(subprocess.Popen(command, env=environment))
    for process in processes:
        process.wait(timeout=300)  # gloo may abort at exit, when all is done: what counts is what was written
    histories = [load_json(tmp_path / name / "trainer_state.json")["log_history"] for name in ("one", "two")]
    losses = [[entry["loss"] for entry in history if "loss" in entry] for history in histories]
    assert len(losses[0]) == 4
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    CalmForPreTraining.from_pretrained(tmp_path / "two")
