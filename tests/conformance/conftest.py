"""What the library's own tests need to run on CALM, and the reasons for which they may be skipped."""

import re
import sys
from types import ModuleType

import pytest
from fetch import PACKAGE
from transformers.models.auto import modeling_auto

sys.path.insert(0, str(PACKAGE.parent))

# The tests look up by the name of a class which labels it takes.
modeling_auto.MODEL_MAPPING_NAMES.update(calm="CalmModel", calm_audio_model="CalmAudioModel")
modeling_auto.MODEL_FOR_PRETRAINING_MAPPING_NAMES["calm"] = "CalmForPreTraining"
modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES["calm"] = "CalmForSequenceClassification"
modeling_auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES["calm"] = "CalmForSequenceClassification"


def stand_in(name: str, **members) -> None:
    """A module that the tests import and the source distribution does not carry."""
    sys.modules[name] = ModuleType(name)
    vars(sys.modules[name]).update(members)


# Mixins of other folders: CALM does not generate, and tests of ours export it.
stand_in(f"{PACKAGE.name}.generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
stand_in(f"{PACKAGE.name}.exporters.test_export", ExportTesterMixin=type("ExportTesterMixin", (), {}))
# Fields of every configuration with other values than the default.
stand_in(
    f"{PACKAGE.name}.utils.test_configuration_utils",
    config_common_kwargs={
        "architectures": ["AnyModel"], "chunk_size_feed_forward": 5, "dtype": "float16", "id2label": {0: "only"},
        "is_encoder_decoder": True, "label2id": {"only": 0}, "output_attentions": True, "output_hidden_states": True,
        "problem_type": "regression", "return_dict": False,
    },
)  # fmt: skip
stand_in("fetch_hub_objects_for_ci", url_to_local_path=str)  # of pictures and films

# Why a test may be skipped; for any other reason the run fails. Those of ours stand in CONTRIBUTING.md.
JUDGED = re.compile(
    "|".join(
        (
            r"requires (accelerator|multiple accelerators|MPS|Flash Attention|the kernels library|deepspeed)",
            r"(image|video)_processor attribute not present|doesn't support images|axial RoPE|Torchcodec|librosa",
            r"chat template|_get_num_multimodal_tokens|decoder-only|sequence-to-sequence|sparse experts|router_logits",
            r"grouped_mm|RoPE|TP plan|sliding window|_keep_in_fp32_modules|No conversion found|use `inputs_embeds`",
            r"Model does not have position embeddings",  # that can be resized
            r"[Cc]omposite|No subconfigs|does not support SDPA",  # the test for models with parts, or the one without
            r"`base_model_class`",  # of rotary positions: CalmForPreTraining is no base model
            r"CalmForPreTraining does not propagate hidden states|does not support output_attentions",
            r"^Skipped: CALM:|test_resize_embeddings is set to `False`",  # ours
        )
    )
)
unjudged = []


def pytest_configure(config: pytest.Config) -> None:
    for mark in ("accelerate", "flash_attn", "flash_attn_3", "flash_attn_4", "is_training", "torch_compile"):
        for name in (f"{mark}_test", f"{mark}_tests"):
            config.addinivalue_line("markers", f"{name}: of the library")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not JUDGED.search(report.longrepr[2]):
        unjudged.append(f"{report.nodeid}: {report.longrepr[2]}")


def pytest_terminal_summary(terminalreporter) -> None:
    for line in unjudged:
        terminalreporter.write_line(f"NOT JUDGED {line}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    session.exitstatus = session.exitstatus or int(bool(unjudged))
