"""Running a checkpoint over a data set: embeddings, nearest words, class logits, for every clip in order."""

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoConfig, AutoProcessor, PreTrainedConfig

from modeling_calm import CalmForPreTraining, CalmForSequenceClassification
from processing import CalmProcessor, DataCollatorForCalmClassification, DataCollatorForCalmPreTraining
from processing.audio import split_waveform

Checkpoint = CalmForPreTraining | CalmForSequenceClassification


def load_processor(name: str) -> CalmProcessor:
    """The processor saved with a checkpoint, whose geometry matches its model.

    Raises:
        ValueError: if `name` is not a checkpoint, has no CALM processor, or has that of another model.
    """
    try:
        processor = AutoProcessor.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"'{name}' holds no processor. {error}") from error
    if not isinstance(processor, CalmProcessor):
        raise ValueError(f"'{name}' holds a {type(processor).__name__}, no processor of CALM.")
    config = load_config(name)
    processor.feature_extractor.check_geometry(getattr(config, "audio_config", config))
    return processor


def load_config(name: str) -> PreTrainedConfig:
    """The configuration of a checkpoint.

    Raises:
        ValueError: if `name` is not a checkpoint.
    """
    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"'{name}' holds no checkpoint. Give a run's folder or a Hub name. ({error})") from error


def checkpoint_kind(name: str) -> str:
    """The class whose weights a checkpoint holds, such as `"CalmForPreTraining"`.

    Raises:
        ValueError: if `name` is not a checkpoint.
    """
    return (load_config(name).architectures or ["unknown weights"])[0]


def load_checkpoint(name: str, kind: type[Checkpoint]) -> tuple[Checkpoint, CalmProcessor]:
    """The model saved in a run's folder or a Hub repository, ready to evaluate, and its processor.

    Raises:
        ValueError: if the checkpoint holds another kind of model, or no processor.
    """
    found = checkpoint_kind(name)
    if found != kind.__name__:
        raise ValueError(f"'{name}' holds {found}, not a {kind.__name__}.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return kind.from_pretrained(name).to(device).eval(), load_processor(name)


def evaluation_collator(processor: CalmProcessor) -> DataCollatorForCalmPreTraining:
    """A collator of unaltered clips and transcripts: nothing masked, nothing sampled."""
    return DataCollatorForCalmPreTraining(processor, mlm_probability=0, mask_time_prob=0, draw_pairs=False)


def unused_pieces(tokenizer) -> list[int]:
    """Ids of unused tokens in BERT vocabularies; their untrained embeddings may be close to anything."""
    return [index for piece, index in tokenizer.get_vocab().items() if piece.startswith("[unused")]


def read_by_tokenizer(processor: CalmProcessor, texts: list[str]) -> list[str]:
    """Transcripts as the model sees them: to an uncased tokenizer, "Stop" and "stop" are the same."""
    ids = processor.tokenizer(texts)["input_ids"]
    return processor.tokenizer.batch_decode(ids, skip_special_tokens=True)


def batches(model: Checkpoint, collator, rows, batch_size: int):
    """Batches of the rows in order, on the model's device."""
    for start in range(0, len(rows), batch_size):
        batch = collator([rows[i] for i in range(start, min(start + batch_size, len(rows)))])
        yield {name: value.to(model.device) for name, value in batch.items()}


@torch.no_grad()
def embed(
    model: CalmForPreTraining, processor: CalmProcessor, dataset: Dataset, batch_size: int
) -> dict[str, np.ndarray]:
    """`audio_embeds` and `text_embeds`, (N, E) each."""
    collator = evaluation_collator(processor)
    audio, text = [], []
    for batch in batches(model, collator, dataset, batch_size):
        audio.append(
            model.calm.get_audio_features(batch["input_features"], batch["input_features_mask"]).pooler_output
        )
        text.append(model.calm.get_text_features(batch["input_ids"], batch["attention_mask"]).pooler_output)
    return {
        "audio_embeds": torch.cat(audio).float().cpu().numpy(),
        "text_embeds": torch.cat(text).float().cpu().numpy(),
    }


def read_transcripts(
    model: CalmForPreTraining, processor: CalmProcessor, rows: Dataset | list[dict], said: list[str], batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Reading scores of every distinct transcript for every clip, and a mask of those spoken, (N, texts) each.

    Args:
        said: the transcript of each row.
    """
    transcripts, texts = read_by_tokenizer(processor, said), {}
    for transcript, text in zip(transcripts, said, strict=True):
        texts.setdefault(transcript, text)
    words = processor(text=list(texts.values()), return_tensors="pt", padding=True).to(model.device)
    collator = evaluation_collator(processor)
    scores = [
        model.score_transcripts(
            words["input_ids"], batch["input_features"], words["attention_mask"], batch["input_features_mask"]
        )
        for batch in batches(model, collator, rows, batch_size)
    ]
    where = np.array([[text == transcript for text in texts] for transcript in transcripts])
    return torch.cat(scores).cpu().numpy(), where


@torch.no_grad()
def count_words(
    model: CalmForPreTraining, processor: CalmProcessor, dataset: Dataset, batch_size: int, top_k: int = 5
) -> np.ndarray:
    """Per clip, (N, 3): acoustic tokens; those with a piece of the clip's transcript among their nearest wordpieces.

    The third column counts those near a piece of another clip's transcript, the next one that differs. Special and
    unused pieces are excluded.
    """
    tokenizer = processor.tokenizer
    pieces = [set(ids) for ids in tokenizer(list(dataset["text"]), add_special_tokens=False)["input_ids"]]
    others = [next((p for p in pieces[i + 1 :] + pieces[:i] if p != own), set()) for i, own in enumerate(pieces)]
    collator, unused = evaluation_collator(processor), unused_pieces(tokenizer)
    counts = []
    for batch in batches(model, collator, dataset, batch_size):
        nearest = model.calm.nearest_tokens(
            batch["input_features"],
            batch["input_features_mask"],
            top_k=top_k,
            excluded_token_ids=unused,
        )
        for tokens, real in zip(nearest.token_ids.tolist(), nearest.acoustic_tokens_mask.tolist(), strict=True):
            tokens = [set(token) for token, is_real in zip(tokens, real, strict=True) if is_real]
            said = (pieces[len(counts)], others[len(counts)])
            counts.append((len(tokens), *(sum(not words.isdisjoint(token) for token in tokens) for words in said)))
    return np.array(counts)


def word_reading(counts: np.ndarray) -> dict[str, float]:
    """Shares of all acoustic tokens, from [`count_words`]."""
    total, hits, chance = counts.sum(axis=0).tolist()
    return {"word_reading": hits / total, "word_reading_other_transcript": chance / total, "acoustic_tokens": total}


@torch.no_grad()
def classify(
    model: CalmForSequenceClassification,
    processor: CalmProcessor,
    dataset: Dataset,
    batch_size: int,
    modalities: str = "both",
    chunk_length_s: float | None = None,
) -> np.ndarray:
    """Logits (N, K).

    With `chunk_length_s`, a longer recording is cut into equal chunks of at most that many seconds, each is classified
    together with the whole transcript, and the logits are averaged.
    """
    rate = processor.feature_extractor.sampling_rate
    rows, owners = [], []
    for i, row in enumerate(dataset):
        row = {
            "audio": row["audio"] if modalities != "text" else None,
            "text": row["text"] if modalities != "audio" else None,
        }
        pieces = [row["audio"]]
        if row["audio"] is not None and chunk_length_s is not None:
            pieces = split_waveform(row["audio"], chunk_length_s, rate)
        rows += [{**row, "audio": piece} for piece in pieces]
        owners += [i] * len(pieces)
    collator = DataCollatorForCalmClassification(processor)
    logits = torch.cat([model(**batch).logits for batch in batches(model, collator, rows, batch_size)])
    logits = logits.float().cpu().numpy()
    owners = np.asarray(owners)
    return np.stack([logits[owners == i].mean(0) for i in range(len(dataset))])
