"""The arithmetic of group-relative RL, as pure functions of tensors.

Shapes: ``B = P * G`` completions (the ``G`` of a prompt adjacent), ``T`` completion tokens, ``N`` tokens of
any completions, ``D`` hidden width, ``V`` vocabulary. A *mask* is True where a token counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Aggregation = Literal["token", "sequence", "constant"]


def group_advantages(
    rewards: Float[Tensor, " B"], group_size: int, *, scale: bool = False, eps: float = 1e-4
) -> Float[Tensor, " B"]:
    """Group-relative advantages (GRPO, arXiv:2402.03300, sec. 4.1.2).

    Args:
        rewards: ``(B,)``, the ``G`` completions of a prompt adjacent.
        group_size: ``G``, completions per prompt.
        scale: Divide by the group's standard deviation plus ``eps``; not so in Dr. GRPO (arXiv:2503.20783).
        eps: Keeps a group of equal rewards finite.

    Returns:
        ``(B,)``, zero mean within each group.

    Raises:
        ValueError: ``B`` is not a whole number of groups, or a group has nothing to compare with.

    Example:
        >>> group_advantages(torch.tensor([1.0, 0.0, 1.0, 1.0]), group_size=2)
        tensor([ 0.5000, -0.5000,  0.0000,  0.0000])
    """
    if group_size < 2 or len(rewards) % group_size:
        raise ValueError(
            f"{len(rewards)} rewards are not whole groups of group_size={group_size}, which must be 2 or more"
        )
    groups = rewards.view(-1, group_size)  # (P, G)
    advantages = groups - groups.mean(dim=1, keepdim=True)
    if scale:
        advantages = advantages / (groups.std(dim=1, keepdim=True) + eps)
    return advantages.flatten()


def clipped_surrogate(
    ratio: Float[Tensor, "B T"], advantages: Float[Tensor, "B 1"], clip_range: float, clip_range_high: float
) -> Float[Tensor, "B T"]:
    """PPO's clipped objective per token, negated: a loss (arXiv:1707.06347; two bounds: arXiv:2503.14476).

    Args:
        ratio: ``(B, T)``, probability under the policy over that under the policy that sampled.
        advantages: ``(B, 1)``.
        clip_range: How far the ratio may fall below 1 before its gradient stops.
        clip_range_high: How far it may rise above 1.

    Returns:
        ``(B, T)``, ``-min(ratio * A, clip(ratio) * A)``.

    Example:
        >>> clipped_surrogate(torch.tensor([[0.5, 1.5]]), torch.tensor([[2.0]]), 0.2, 0.2)
        tensor([[-1.0000, -2.4000]])
    """
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range_high)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def k1_kl(logprobs: Float[Tensor, "B T"], ref_logprobs: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """``log p/q`` of tokens sampled from p: unbiased for KL(p, q), of high variance, may be negative.

    The names k1, k2 and k3 are those of http://joschu.net/blog/kl-approx.html.

    Example:
        >>> k1_kl(torch.tensor([[-1.0]]), torch.tensor([[-2.0]]))
        tensor([[1.]])
    """
    return logprobs - ref_logprobs


def k2_kl(logprobs: Float[Tensor, "B T"], ref_logprobs: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """``(log p/q)^2 / 2``: biased, of low variance; its gradient is that of KL(p, q).

    Example:
        >>> k2_kl(torch.tensor([[-1.0]]), torch.tensor([[-3.0]]))
        tensor([[2.]])
    """
    return (logprobs - ref_logprobs).square() / 2


def k3_kl(logprobs: Float[Tensor, "B T"], ref_logprobs: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """``q/p - log q/p - 1``: unbiased, never negative; the one of GRPO (arXiv:2402.03300, eq. 4).

    Example:
        >>> k3_kl(torch.tensor([[-1.0]]), torch.tensor([[-2.0]]))  # e^-1 + 1 - 1
        tensor([[0.3679]])
    """
    log_ratio = ref_logprobs - logprobs
    return log_ratio.exp() - log_ratio - 1


def masked_mean(values: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Mean where the mask is True; 0 if it is True nowhere.

    Example:
        >>> masked_mean(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([True, True, False]))
        tensor(2.)
    """
    return values.masked_fill(~mask, 0).sum() / mask.sum().clamp(min=1)


def normalizer(mask: Bool[Tensor, "B T"], mode: Aggregation, max_length: int) -> Float[Tensor, ""]:
    """What ``aggregate`` divides by, from the mask of a whole optimizer step (add it up over ranks).

    Args:
        mask: ``(B, T)``, all completions of the step.
        mode: ``token``, ``sequence`` or ``constant``; see ``aggregate``.
        max_length: The longest completion that could have been sampled; ``constant`` alone reads it.

    Returns:
        A scalar: tokens, sequences, or sequences times ``max_length``.

    Example:
        >>> mask = torch.tensor([[True, True, True], [True, False, False]])
        >>> [normalizer(mask, mode, max_length=8).item() for mode in ("token", "sequence", "constant")]
        [4.0, 2.0, 16.0]
    """
    sequences = torch.tensor(float(len(mask)), device=mask.device)
    sizes = {"token": mask.sum().float(), "sequence": sequences, "constant": sequences * max_length}
    return sizes[mode]


def aggregate(
    per_token: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    mode: Aggregation,
    *,
    normalizer: float | Tensor,
) -> Float[Tensor, ""]:
    """One loss from per-token losses, such that the losses of micro-batches add up to that of their step.

    Every token of the step weighs the same (``token``, arXiv:2503.14476), every completion does
    (``sequence``, arXiv:2402.03300), or a token does in every step (``constant``, arXiv:2503.20783).

    Args:
        per_token: ``(B, T)``; what the mask hides adds nothing, be it infinite.
        mask: ``(B, T)``.
        mode: What weighs the same.
        normalizer: ``normalizer(...)`` of the whole step, not of this micro-batch.

    Returns:
        A scalar; 0, and still differentiable, where the mask is False everywhere.

    Example:
        >>> losses, mask = torch.tensor([[1.0, 3.0], [6.0, 0.0]]), torch.tensor([[True, True], [True, False]])
        >>> aggregate(losses, mask, "token", normalizer=3.0)  # (1 + 3 + 6) / 3
        tensor(3.3333)
        >>> aggregate(losses, mask, "sequence", normalizer=2.0)  # (2 + 6) / 2
        tensor(4.)
    """
    sums = per_token.masked_fill(~mask, 0).sum(dim=1)  # (B,)
    if mode == "sequence":
        sums = sums / mask.sum(dim=1).clamp(min=1)
    return sums.sum() / torch.as_tensor(normalizer).clamp(min=1)


def token_logprobs(
    hidden: Float[Tensor, "N D"],
    head: Callable[[Tensor], Tensor],
    tokens: Int[Tensor, " N"],
    *,
    temperature: float = 1.0,
    chunk: int = 1024,
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Log-probabilities of tokens, and the entropy they were drawn with, never holding ``(N, V)`` at once.

    Logits exist for ``chunk`` tokens at a time, in fp32 at least; with gradients on they are recomputed in
    the backward pass. Equal to ``head(hidden).log_softmax(-1)`` gathered, in value and gradient.

    Args:
        hidden: ``(N, D)``, the state that predicts each token.
        head: From ``(n, D)`` to logits ``(n, V)``.
        tokens: ``(N,)``, the token to score at each state.
        temperature: Divides the logits; use the sampling temperature.
        chunk: Tokens whose logits exist at once.

    Returns:
        ``(N,)`` log-probabilities and ``(N,)`` entropies in nats, the latter without gradient.
    """
    scored = [
        checkpoint(_score, h, head, t, temperature, use_reentrant=False, preserve_rng_state=False)
        if torch.is_grad_enabled()
        else _score(h, head, t, temperature)
        for h, t in zip(hidden.split(chunk), tokens.split(chunk), strict=True)
    ]
    logprobs, entropy = zip(*scored, strict=True)
    return torch.cat(logprobs), torch.cat(entropy)


def _score(
    hidden: Tensor, head: Callable[[Tensor], Tensor], tokens: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    logits = head(hidden)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    logprobs = logits.log_softmax(dim=-1)  # (n, V)
    chosen = logprobs.gather(1, tokens[:, None]).squeeze(1)
    with torch.no_grad():
        entropy = torch.special.entr(logprobs.exp()).sum(dim=-1)
    return chosen, entropy
