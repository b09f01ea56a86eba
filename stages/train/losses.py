"""Losses: open_clip's own (ClipLoss, SigLipLoss, CoCaLoss), with the same gradient on any number of ranks and pieces of a batch.

The contrastive loss sees the whole global batch. The captioning loss is a mean over all tokens of the global batch that are not
padding: each piece's mean (open_clip's) is weighted by its share of the tokens, so ranks whose captions are long count for more.
Learnt weights: exp(-s) L + s / 2 for each loss, s its log variance (Kendall, Gal and Cipolla 2018, "Multi-Task Learning Using
Uncertainty to Weigh Losses", equation 10).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.errors import UserError
from stages.train.config import Loss as Wanted

FEATURES = ("image_features", "text_features")


@dataclass(frozen=True)
class Losses:
    """`contrastive(image_features, text_features, logit_scale[, logit_bias])` and `caption(logits, labels)` with their weights."""

    kind: str
    contrastive: Callable[..., Any]
    caption: Callable[[Any, Any], Any] | None
    weights: tuple[float, float]
    pad_id: int = 0

    def __call__(self, features: dict[str, Any], out: dict[str, Any], token_share: Any, counts: bool = True) -> dict[str, Any]:
        """The parts of a piece's loss; what is minimised is their sum.

        features: image_features and text_features of the whole batch of this rank, float[b, d], of which this piece's carry
        gradients; out: the model's outputs for this piece; token_share: this piece's share of the global batch's caption tokens, times
        the number of ranks (whose gradients are averaged). Each piece computes the contrastive loss of the whole batch; the gradient of
        what is no piece's own (scale, bias, learnt weights) is taken from the piece that `counts` alone (open_clip adds it up over all).
        The parts are weighted.
        """
        scale = {name: out[name] if counts else out[name].detach() for name in ("logit_scale", "logit_bias") if name in out}
        if self.kind != "siglip":
            scale.pop("logit_bias", None)
        contrastive = self.contrastive(**{name: features[name] for name in FEATURES}, **scale)
        if self.caption is None:
            return {"contrastive": contrastive}
        caption = self.caption(out["logits"].permute(0, 2, 1), out["labels"]) * token_share
        if "loss_log_variance" not in out:
            return {"contrastive": self.weights[0] * contrastive, "caption": self.weights[1] * caption}
        first, second = out["loss_log_variance"]
        parts = {"contrastive": (-(first if counts else first.detach())).exp() * contrastive, "caption": (-second).exp() * caption}
        return {**parts, "uncertainty": (first + second) / 2} if counts else parts

    def tokens(self, text: Any) -> int:
        """How many tokens of int64[b, length] the captioning loss predicts."""
        return int((text[:, 1:] != self.pad_id).sum()) if self.caption is not None else 0


def build(wanted: Wanted, kind: str, pad_id: int, rank: int, world: int) -> Losses:
    """The losses of a model of `kind` on one of `world` ranks. Raises UserError for options that do not go together."""
    import open_clip
    from open_clip.loss import SigLipLoss

    if kind == "siglip":
        if wanted.label_smoothing:
            raise UserError("train.loss.label_smoothing: the sigmoid loss has none; set it to 0")
        return Losses(kind, SigLipLoss(rank=rank, world_size=world), None, (1.0, 0.0))
    if wanted.learnable and (kind != "coca" or not wanted.contrastive_weight or not wanted.caption_weight):
        raise UserError("train.loss.learnable: weights are learnt for a CoCa model, from a contrastive_weight and caption_weight above 0")
    shared = {"local_loss": wanted.local, "gather_with_grad": wanted.gather_with_grad, "rank": rank, "world_size": world}
    contrastive = _smoothed(wanted.label_smoothing, shared) if wanted.label_smoothing else open_clip.ClipLoss(**shared)
    if kind == "clip":
        return Losses(kind, contrastive, None, (1.0, 0.0))
    caption = open_clip.CoCaLoss(caption_loss_weight=1.0, clip_loss_weight=1.0, pad_id=pad_id, **shared).caption_loss
    caption.label_smoothing = wanted.label_smoothing
    return Losses(kind, contrastive, caption, (wanted.contrastive_weight, wanted.caption_weight), pad_id)


def _smoothed(smoothing: float, shared: dict[str, Any]) -> Any:
    """open_clip's ClipLoss, its logits and labels as they are, with smoothed cross entropies."""
    import open_clip
    from torch.nn import functional

    class SmoothedClipLoss(open_clip.ClipLoss):  # type: ignore[misc]
        def forward(self, image_features: Any, text_features: Any, logit_scale: Any) -> Any:
            logits = self.get_logits(image_features, text_features, logit_scale)
            labels = self.get_ground_truth(image_features.device, logits[0].shape[0])
            return sum(functional.cross_entropy(side, labels, label_smoothing=smoothing) for side in logits) / 2

    return SmoothedClipLoss(**shared)
