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
Scale = Literal["group", "batch", "none"]
KL = Literal["k1", "k2", "k3"]
Correction = Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]


def group_advantages(
    rewards: Float[Tensor, " B"], group_size: int, *, scale: Scale = "none", eps: float = 1e-4
) -> Float[Tensor, " B"]:
    """Group-relative advantages (GRPO, arXiv:2402.03300, sec. 4.1.2).

    Args:
        rewards: ``(B,)``, the ``G`` completions of a prompt adjacent.
        group_size: ``G``, completions per prompt.
        scale: Divide by a standard deviation plus ``eps``: that of the ``group`` (GRPO), that of all rewards
            of the ``batch`` (arXiv:2508.08221), or ``none`` (Dr. GRPO, arXiv:2503.20783).
        eps: Keeps equal rewards finite.

    Returns:
        ``(B,)``, zero mean within each group; exactly 0 in a group of equal rewards.

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
    if scale == "group":
        advantages = advantages / (groups.std(dim=1, keepdim=True) + eps)
    elif scale == "batch":
        advantages = advantages / (rewards.std() + eps)
    return advantages.masked_fill(zero_variance(rewards, group_size)[:, None], 0).flatten()


def leave_one_out_advantages(
    rewards: Float[Tensor, " B"], group_size: int, *, scale: Scale = "none"
) -> Float[Tensor, " B"]:
    """Reward less the mean of the *other* completions of the prompt (RLOO, arXiv:2402.14740, sec. 4.2).

    Example:
        >>> leave_one_out_advantages(torch.tensor([1.0, 0.0, 0.0, 0.0]), group_size=4)  # 1 - 0 and 0 - 1/3
        tensor([ 1.0000, -0.3333, -0.3333, -0.3333])
    """
    return group_advantages(rewards, group_size, scale=scale) * (group_size / (group_size - 1))


def batch_advantages(
    rewards: Float[Tensor, " B"], group_size: int | None = None, *, eps: float = 1e-4
) -> Float[Tensor, " B"]:
    """Advantages of unit deviation over the batch (REINFORCE++, arXiv:2501.03262, sec. 3.2).

    Args:
        rewards: ``(B,)``.
        group_size: Subtract the mean of each group of so many (REINFORCE++-baseline); ``None``: of the batch.
        eps: Keeps equal rewards finite.

    Returns:
        ``(B,)``, zero mean within each group, or in the batch.

    Example:
        >>> batch_advantages(torch.tensor([0.0, 1.0, 2.0]), eps=0.0)
        tensor([-1.,  0.,  1.])
    """
    centred = group_advantages(rewards, len(rewards) if group_size is None else group_size)
    return centred / (centred.std() + eps)


def zero_variance(rewards: Float[Tensor, " B"], group_size: int) -> Bool[Tensor, " P"]:
    """Whether all completions of a group earned the same.

    Example:
        >>> zero_variance(torch.tensor([1.0, 0.0, 2.0, 2.0]), group_size=2)
        tensor([False,  True])
    """
    groups = rewards.view(-1, group_size)
    return groups.amax(dim=1) == groups.amin(dim=1)


def overlong_penalty(lengths: Int[Tensor, " B"], max_length: int, buffer: int) -> Float[Tensor, " B"]:
    """Soft overlong punishment: from 0 down to -1 over the last tokens (DAPO, arXiv:2503.14476, eq. 13).

    Args:
        lengths: ``(B,)``, completion tokens.
        max_length: The longest completion that could have been sampled.
        buffer: Tokens before ``max_length`` over which the penalty grows.

    Returns:
        ``(B,)``, at most 0; to be added to the rewards.

    Example:
        >>> overlong_penalty(torch.tensor([5, 8, 9, 10]), max_length=10, buffer=4)
        tensor([ 0.0000, -0.5000, -0.7500, -1.0000])
    """
    return -(lengths - (max_length - buffer)).clamp(min=0) / buffer


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


def soft_gate(
    ratio: Float[Tensor, "B T"], advantages: Float[Tensor, "B 1"], tau_positive: float, tau_negative: float
) -> Float[Tensor, "B T"]:
    """SAPO's smooth trust region per token, negated: a loss (arXiv:2511.20347, eq. 5).

    Args:
        ratio: ``(B, T)``.
        advantages: ``(B, 1)``.
        tau_positive: How sharply the gradient fades as the ratio leaves 1, where the advantage is positive.
        tau_negative: The same where it is not.

    Returns:
        ``(B, T)``, ``-4 / tau * sigmoid(tau * (ratio - 1)) * A``; its gradient at ratio 1 is ``-A``.

    Example:
        >>> soft_gate(torch.ones(1, 1), torch.tensor([[3.0]]), 1.0, 1.05)  # -4 * 1/2 * 3
        tensor([[-6.]])
    """
    tau = torch.where(advantages > 0, tau_positive, tau_negative)
    return -4 / tau * torch.sigmoid(tau * (ratio - 1)) * advantages


def sequence_ratio(
    log_ratio: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], *, mean: bool
) -> Float[Tensor, "B T"]:
    """One ratio per completion, given to each of its tokens.

    Args:
        log_ratio: ``(B, T)``.
        mask: ``(B, T)``.
        mean: The geometric mean of the tokens' ratios (GSPO, arXiv:2507.18071, eq. 7); else their product.

    Returns:
        ``(B, T)``, equal along each row.

    Example:
        >>> log_ratio, mask = torch.tensor([[2.0, 8.0, 1.0]]).log(), torch.tensor([[True, True, False]])
        >>> sequence_ratio(log_ratio, mask, mean=True), sequence_ratio(log_ratio, mask, mean=False)
        (tensor([[4., 4., 4.]]), tensor([[16., 16., 16.]]))
    """
    total = log_ratio.masked_fill(~mask, 0).sum(dim=1, keepdim=True)  # (B, 1)
    if mean:
        total = total / mask.sum(dim=1, keepdim=True).clamp(min=1)
    return total.exp().expand_as(log_ratio)


def correction_weights(
    ratio: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], mode: Correction, cap: float
) -> Float[Tensor, "B T"]:
    """Truncated importance weights for completions that another sampler drew.

    Truncation: https://fengyao.notion.site/off-policy-rl; masking and the sequence level:
    https://richardli.xyz/rl-collapse. Right only if the sampler drew from its whole distribution: together
    with top-p or top-k it is refused.

    Args:
        ratio: ``(B, T)``, probability under the policy as it was while sampling over that under the sampler.
        mask: ``(B, T)``.
        mode: Weigh by the ratio of each ``token`` or by their product over the ``sequence``; what exceeds the
            cap becomes the cap (``truncate``) or 0 (``mask``). ``none`` weighs all tokens 1.
        cap: The largest weight.

    Returns:
        ``(B, T)``.

    Example:
        >>> ratio, mask = torch.tensor([[0.5, 6.0]]), torch.tensor([[True, True]])
        >>> correction_weights(ratio, mask, "token_truncate", cap=2.0)
        tensor([[0.5000, 2.0000]])
        >>> correction_weights(ratio, mask, "sequence_mask", cap=2.0)  # 0.5 * 6 > 2
        tensor([[0., 0.]])
    """
    weights = sequence_ratio(ratio.log(), mask, mean=False) if mode.startswith("sequence") else ratio
    return weights.clamp(max=cap) if mode.endswith("truncate") else weights.masked_fill(weights > cap, 0)


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
    sequences = torch.tensor(len(mask), dtype=torch.float32, device=mask.device)
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
        ``(N,)`` log-probabilities and ``(N,)`` entropies in nats.
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
    # not entr, whose gradient is infinite where a probability is 0
    entropy = -(logprobs.exp() * logprobs).sum(dim=-1)
    return chosen, entropy
