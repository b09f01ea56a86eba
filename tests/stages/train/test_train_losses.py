"""Losses: open_clip's own values; smoothing and learnt weights as their sources have them; pieces that add up."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.errors import UserError
from stages.lib import torchvision_shim
from stages.train.config import Loss

torch = pytest.importorskip("torch")
torchvision_shim.ensure()
open_clip = pytest.importorskip("open_clip")

from stages.train import losses  # noqa: E402


@pytest.fixture
def out() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)

    def unit() -> Any:
        return torch.nn.functional.normalize(torch.randn(6, 8, generator=generator), dim=-1)

    labels = torch.randint(1, 11, (6, 5), generator=generator)
    labels[:3, 3:] = 0  # padding
    return {
        "image_features": unit(),
        "text_features": unit(),
        "logit_scale": torch.tensor(9.0),
        "logit_bias": torch.tensor(-3.0),
        "logits": torch.randn(6, 5, 11, generator=generator),
        "labels": labels,
    }


def total(parts: dict[str, Any]) -> float:
    return float(sum(parts.values()))


def made(kind: str, **options: Any) -> losses.Losses:
    return losses.build(Loss(**options), kind, 0, 0, 1)


def test_clip_and_siglip_are_open_clip_s(out: dict[str, Any]) -> None:
    from open_clip.loss import SigLipLoss

    features = (out["image_features"], out["text_features"], out["logit_scale"])
    assert total(made("clip")(out, out, 1.0)) == float(open_clip.ClipLoss()(*features))
    assert total(made("siglip")(out, out, 1.0)) == float(SigLipLoss()(*features, out["logit_bias"]))


def test_coca_is_open_clip_s_with_its_weights(out: dict[str, Any]) -> None:
    theirs = open_clip.CoCaLoss(caption_loss_weight=3.0, clip_loss_weight=0.5)
    given = {name: value for name, value in out.items() if name != "logit_bias"}
    ours = made("coca", caption_weight=3.0, contrastive_weight=0.5)(out, out, 1.0)
    assert [float(ours[name]) for name in ("contrastive", "caption")] == pytest.approx([float(value) for value in theirs(**given)])


def test_label_smoothing_mixes_in_the_mean_over_all_pairs(out: dict[str, Any]) -> None:
    logits = out["logit_scale"] * out["image_features"] @ out["text_features"].T
    sides = [-side.log_softmax(1) for side in (logits, logits.T)]
    wanted = sum(0.9 * side.diagonal().mean() + 0.1 * side.mean() for side in sides) / 2
    assert total(made("clip", label_smoothing=0.1)(out, out, 1.0)) == pytest.approx(float(wanted), rel=1e-5)


def test_learnt_weights_begin_as_configured_and_rest_where_a_weight_is_half_its_loss_s_inverse(out: dict[str, Any]) -> None:
    fixed, learnt = made("coca")(out, out, 1.0), made("coca", learnable=True)
    variance = (-torch.log(torch.tensor([1.0, 2.0]))).requires_grad_()
    begun = learnt(out, {**out, "loss_log_variance": variance}, 1.0)
    for name in ("contrastive", "caption"):
        assert begun[name].item() == pytest.approx(float(fixed[name]))
    raw = torch.stack([begun["contrastive"] / 1.0, begun["caption"] / 2.0]).detach()
    rest = torch.log(2 * raw).requires_grad_()
    sum(learnt(out, {**out, "loss_log_variance": rest}, 1.0).values()).backward()
    torch.testing.assert_close(rest.grad, torch.zeros(2), atol=1e-6, rtol=0)


def test_caption_losses_of_pieces_add_up_by_their_tokens(out: dict[str, Any]) -> None:
    loss = made("coca")
    whole = loss(out, out, 1.0)["caption"]
    text = torch.cat([torch.ones(6, 1, dtype=torch.long), out["labels"]], 1)
    pieces = [{**out, "logits": out["logits"][part], "labels": out["labels"][part]} for part in (slice(0, 3), slice(3, 6))]
    counts = [loss.tokens(part) for part in text.chunk(2)]
    assert counts == [9, 15]
    added = sum(loss(out, piece, count / 24)["caption"] for piece, count in zip(pieces, counts, strict=True))
    assert float(added) == pytest.approx(float(whole), rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("siglip", {"label_smoothing": 0.1}), ("clip", {"learnable": True}), ("coca", {"learnable": True, "caption_weight": 0.0})],
)
def test_options_that_do_not_go_together_are_refused(kind: str, options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"train\.loss"):
        made(kind, **options)
