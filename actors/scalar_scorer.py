"""The scorer: a scalar reward model that scores the engines' samples."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from transformers import AutoTokenizer

from actors.cluster import logs
from actors.cluster.heartbeats import beat_from_a_thread
from rlsys.models.loading import ModelError
from rlsys.models.scalar import Group, ScalarModel, load_classifier, score_texts
from rlsys.models.self_check import SelfCheck, checked_scalar_model
from rlsys.prompts.chat import Chat
from rlsys.prompts.tokenizers import Retokenizer, tokenizer_difference


class ScalarScorer:
    """Scores texts with a model trained by `rlsys meta-rm`, on a GPU if this actor has one, else on `threads` cores."""

    def __init__(
        self,
        name: str,
        model_path: str,
        dtype: str,
        threads: int,
        log_dir: str | None = None,
        token_budget: int = 4096,
        judge_path: str | None = None,
    ):
        """
        Args:
            judge_path: folder or hub name of the model whose tokens are scored; None: this model. If its tokenizer differs, texts are
                re-encoded: ids of a different vocabulary would silently be scored as other words.
            dtype: "bfloat16" or "float32", of weights and activations; the score itself is computed in float32.
            log_dir: folder for NAME.log, with the libraries' output; None: it goes to Ray.
            token_budget: maximum tokens per forward pass, which bounds activation memory.

        A prompt is encoded once for all its texts if the self-check passes that way, else once per text.

        Raises:
            ModelError: the model has no head with one output, or fails the self-check both ways (`rlsys.models.self_check`).
        """
        self.name = name
        if log_dir is not None:
            logs.redirect_output(Path(log_dir) / f"{name}.log")
        torch.set_num_threads(threads)
        self.device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
        self.model, self.self_check = _load(model_path, getattr(torch, dtype), self.device)
        self.token_budget = token_budget
        own = AutoTokenizer.from_pretrained(model_path)
        judge = own if judge_path is None else AutoTokenizer.from_pretrained(judge_path)
        self.special = _special_ids(judge)
        self.tokens_differ = tokenizer_difference(judge, own)
        self.translation = Retokenizer(judge, own) if self.tokens_differ else None

    def __repr__(self) -> str:
        return self.name

    def ready(self) -> dict[str, Any]:
        """Answer once the model is loaded.

        Returns:
            name, device, training objective (None if unknown), tokens_differ (how the judge's tokenizer differs; None: it does
            not), packing (a prompt is encoded once), and self_check: figures of `rlsys.models.self_check.SelfCheck`.
        """
        return {
            "name": self.name,
            "device": str(self.device),
            "objective": getattr(self.model.model.config, "rlsys_objective", None),
            "tokens_differ": self.tokens_differ,
            "packing": self.model.packing,
            "self_check": asdict(self.self_check),
        }

    def start_heartbeat(self, heartbeats: Any) -> None:
        """Report this actor as alive from now on (`actors.cluster.heartbeats`)."""
        beat_from_a_thread(self.name, heartbeats)

    def score(self, prompts: pa.RecordBatch, samples: pa.RecordBatch) -> list[float]:
        """Return the score (logit) of each of the SAMPLES of PROMPTS, in order.

        Trailing special tokens of a text, such as the end of turn, are not scored.

        Raises:
            ValueError: a prompt is empty, or missing.
        """
        prompt_ids = _arrays(prompts["prompt_token_ids"])
        texts = [self._without_end(text) for text in _arrays(samples["token_ids"])]
        if empty := [number for number, prompt in zip(prompts["group"].to_pylist(), prompt_ids) if not len(prompt)]:
            raise ValueError(f"{self.name}: group {empty[0]}: prompt_token_ids is empty; expected the prompt that texts were sampled for.")
        if self.translation:
            prompt_ids, texts = self.translation.prompts(prompt_ids), self.translation.texts(texts)
        owner = pc.index_in(samples["group"], prompts["group"])
        if owner.null_count:
            raise ValueError(f"{self.name}: {owner.null_count} samples have no prompt of their group.")
        members = [np.flatnonzero(owner.to_numpy() == place) for place in range(len(prompt_ids))]
        groups = [
            Group("", prompt, tuple(texts[row] for row in rows), (0.0,) * len(rows))
            for prompt, rows in zip(prompt_ids, members)
            if len(rows)
        ]
        scores = np.empty(len(texts), np.float32)
        scores[np.concatenate([np.empty(0, np.int64), *members])] = score_texts(self.model, groups, self.token_budget, self.device)
        return scores.tolist()

    def _without_end(self, text: np.ndarray) -> np.ndarray:
        ordinary = np.flatnonzero(~np.isin(text, self.special))
        return text[: ordinary[-1] + 1] if len(ordinary) else text[:0]


def _load(path: str, dtype: torch.dtype, device: torch.device) -> tuple[ScalarModel, SelfCheck]:
    """Load the model, packed if that passes the self-check: the checkpoint does not record how it was trained."""
    refusal: ModelError | None = None
    for packing in (True, False):
        classifier = load_classifier(path, dtype, seed=None).to(device)  # reloaded: a failed check modifies the model
        try:
            model, check = checked_scalar_model(classifier, packing, gradient=False)
        except ModelError as error:
            refusal = refusal or error
        else:
            return model.eval(), check
    assert refusal is not None
    raise refusal


def _special_ids(tokenizer: Any) -> list[int]:
    """Return the ids of tokens that are not part of a text: special tokens and the end of turn."""
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special} | set(tokenizer.all_special_ids)
    return [*special, *([Chat(tokenizer).end] if tokenizer.chat_template else [])]


def _arrays(column: pa.ListArray) -> list[np.ndarray]:
    """Return each list as an int32 array, without copying."""
    values, offsets = column.values.to_numpy(), column.offsets.to_numpy()
    return [values[start:end] for start, end in zip(offsets[:-1], offsets[1:])]
