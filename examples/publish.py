"""Publish a checkpoint on the Hub: weights, processor, code and a model card with its results, in one commit.

    python examples/publish.py --model runs/emotion/calm-0 --repo_id NAMESPACE/calm-emotion \
        --license cc-by-nc-sa-4.0 --training_data "CMU AN4: free with notice" "RAVDESS: CC BY-NC-SA 4.0" \
        --language en --base_model sentence-transformers/all-MiniLM-L6-v2 --output_dir look_at_this_first

With `--output_dir` nothing is pushed. Nothing else in the run's folder is published: no optimizer state, no pickle.
"""

import logging
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import httpx, validate_repo_id
from model_card import Evaluation, model_card, read_results
from options import parse_arguments, weights_digest
from scoring import checkpoint_kind, load_processor
from transformers import PreTrainedModel

import modeling_calm
from processing import AudioTextClassificationPipeline, CalmProcessor

logger = logging.getLogger(__name__)

KINDS = ("CalmModel", "CalmForPreTraining", "CalmForSequenceClassification")
RESULTS = ("evaluation.json", "results.json")
# Files of earlier commits that a reader could load instead of those published now, and pickles.
OUTDATED = ["*.safetensors", "*.safetensors.index.json", "*.py", "*.bin", "*.pt"]
NON_COMMERCIAL = re.compile(r"\bnc\b|non[ -]?commercial|research[ -]only|academic", re.IGNORECASE)
SHARE_ALIKE = re.compile(r"\bsa\b|share[ -]?alike", re.IGNORECASE)


@dataclass
class PublishingArguments:
    """What is published, where, and under which licence."""

    model: str = field(metadata={"help": "Folder of a run, or of any other CALM checkpoint with its processor."})
    repo_id: str = field(metadata={"help": "NAMESPACE/NAME, created if it does not exist."})
    license: str = field(metadata={"help": "Licence of the weights, as the Hub calls it, such as cc-by-nc-sa-4.0."})
    training_data: list[str] = field(
        metadata={"help": "'NAME: LICENCE' of everything it was trained on, its earlier stages included."}
    )
    results: list[str] = field(
        default_factory=list,
        metadata={"help": "Results files, 'FILE' or 'NAME OF THE DATA=FILE'; by default evaluation.json of the run."},
    )
    language: list[str] = field(default_factory=list, metadata={"help": "Codes of its languages, such as en."})
    base_model: str | None = field(default=None, metadata={"help": "Hub name of the language model it started from."})
    revision: str | None = field(default=None, metadata={"help": "Branch, created if it does not exist."})
    private: bool = field(default=False, metadata={"help": "Create the repository as a private one."})
    token: str | None = field(default=None, metadata={"help": "By default HF_TOKEN or that of `hf auth login`."})
    commit_message: str = field(default="Publish checkpoint", metadata={"help": "Title of the commit."})
    max_shard_size: str = field(default="50GB", metadata={"help": "Weights beyond this go into several files."})
    output_dir: str | None = field(default=None, metadata={"help": "Write everything there, and push nothing."})


def parse_training_data(entries: list[str], license: str) -> dict[str, str]:
    """Licences by name of the training data, parsed from 'NAME: LICENCE'.

    Raises:
        ValueError: if an entry has no licence, or the weights' licence is more permissive than the training data's.
    """
    data = {}
    for entry in entries:
        name, separator, licence = (part.strip() for part in entry.rpartition(": "))
        if not (name and separator.strip() and licence):
            raise ValueError(f"`--training_data {entry!r}` names no data with its licence, as 'NAME: LICENCE' does.")
        data[name] = licence
    asked = {
        "-nc": ({name for name in data if NON_COMMERCIAL.search(data[name])}, NON_COMMERCIAL.search(license)),
        "-sa": ({name for name in data if SHARE_ALIKE.search(data[name])}, SHARE_ALIKE.search(license)),
    }
    broken = [term for term, (names, kept) in asked.items() if names and not kept]
    if asked["-nc"][1] and asked["-sa"][0] - asked["-nc"][0]:  # share-alike allows no additional terms
        broken.append("no -nc")
    if broken and license != "other":
        fitting = "cc-by" + "".join(term for term, (names, _) in asked.items() if names) + "-4.0"
        raise ValueError(
            f"`--license {license}` does not keep the terms ({', '.join(broken)}) of the data that the model was"
            f" trained on: {data}. Choose one that does, such as {fitting}, or `other`."
        )
    return data


def check_repo_id(repo_id: str) -> None:
    """Reject an invalid repository name.

    Raises:
        ValueError: says what is wrong with it.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"`--repo_id {repo_id}` is no name of a repository: {error}") from error
    if repo_id.count("/") != 1:
        raise ValueError(f"`--repo_id {repo_id}` has no namespace. Give USER/NAME or ORGANISATION/NAME.")


def load(folder: Path) -> tuple[PreTrainedModel, CalmProcessor]:
    """The model in its saved class and dtype, and its processor.

    Raises:
        ValueError: if the folder holds no CALM checkpoint, or has no processor.
    """
    if not folder.is_dir():
        raise ValueError(f"'{folder}' is no folder. Give that of a run of pretrain.py or finetune.py.")
    kind = checkpoint_kind(str(folder))
    if kind not in KINDS:
        raise ValueError(f"'{folder}' holds {kind}, and no checkpoint of CALM: {', '.join(KINDS)}.")
    processor = load_processor(str(folder))
    return getattr(modeling_calm, kind).from_pretrained(folder), processor


def find_results(folder: Path, given: list[str]) -> list[Evaluation]:
    """The results given, or else those in the run's folder: evaluation.json takes precedence over results.json.

    Raises:
        ValueError: if a file is missing, or belongs to other weights.
    """
    weights = weights_digest(folder)
    if not given:
        found = [file for name in RESULTS if (file := folder / name).is_file()][:1]
        if not found:
            logger.warning("No results: the card says so. Write them with examples/evaluate.py --models %s", folder)
        return [read_results(file, weights) for file in found]
    named = [("", "", entry) if Path(entry).is_file() else entry.rpartition("=") for entry in given]
    return [read_results(Path(file), weights, data or None) for data, _, file in named]


def push(folder: Path, arguments: PublishingArguments) -> str:
    """Push a folder in one commit.

    Returns:
        The URL of the commit.

    Raises:
        ValueError: if there is no token, it is invalid or lacks write access, or the repository is public but should
            be private.
        ConnectionError: if the Hub cannot be reached.
    """
    if arguments.token is None and get_token() is None:
        raise ValueError("There is no token of the Hub. Log in with `hf auth login`, or set HF_TOKEN.")
    api, repo_id, revision = HfApi(token=arguments.token), arguments.repo_id, arguments.revision
    try:
        api.create_repo(repo_id, private=arguments.private or None, exist_ok=True)
        if arguments.private and not api.model_info(repo_id).private:
            raise ValueError(f"'{repo_id}' exists and is public. Make it private on the Hub, or choose another name.")
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=revision,
            commit_message=arguments.commit_message,
            delete_patterns=OUTDATED,
        )
    except HfHubHTTPError as error:
        remedy = {
            401: "The Hub does not know this token. Log in anew with `hf auth login`.",
            403: f"The token may not write to '{repo_id}'. Check the namespace (`hf auth whoami`) and its rights.",
        }.get(error.response.status_code, "The Hub refused it.")
        raise ValueError(f"Nothing was published. {remedy} ({error})") from error
    except (httpx.TransportError, OfflineModeIsEnabled) as error:
        raise ConnectionError(
            f"Nothing was published: {api.endpoint} cannot be reached ({error}). Try again with a network, or keep the"
            " folder with `--output_dir`."
        ) from error
    return commit.commit_url


def main(argv: list[str] | None = None) -> str:
    (arguments,) = parse_arguments(PublishingArguments, arguments=argv)
    logging.basicConfig()
    folder = Path(arguments.model)
    check_repo_id(arguments.repo_id)
    training_data = parse_training_data(arguments.training_data, arguments.license)
    output = None if arguments.output_dir is None else Path(arguments.output_dir)
    if output is not None and output.exists() and any(output.iterdir()):
        raise ValueError(f"'{output}' is not empty. Choose another `--output_dir`.")
    model, processor = load(folder)
    card = model_card(
        model,
        folder,
        arguments.repo_id,
        license=arguments.license,
        training_data=training_data,
        evaluations=find_results(folder, arguments.results),
        language=arguments.language or None,
        base_model=arguments.base_model,
        revision=arguments.revision,
    )
    with tempfile.TemporaryDirectory() as temporary:
        output = output or Path(temporary)
        # The pipeline also saves the model and the processor, and the code of all three.
        pipe = AudioTextClassificationPipeline(model=model, processor=processor, device="cpu")
        pipe.save_pretrained(output, max_shard_size=arguments.max_shard_size)
        card.save(output / "README.md")
        where = push(output, arguments) if arguments.output_dir is None else str(output)
    print(where)
    return where


if __name__ == "__main__":
    main()
