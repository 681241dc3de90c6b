# SPDX-License-Identifier: Apache-2.0
r"""Connectionist temporal classification (CTC): the likelihood of a label sequence, summed over all alignments.

An alignment assigns to each frame a label or the blank.  It produces a label sequence by merging repeated labels and
then removing blanks; two equal consecutive labels therefore need a blank between them.  The recursion computes two
probabilities, each summed over all alignments of the first :math:`t` frames that produce the first :math:`n` labels:

- :math:`\phi_t(n)`, if frame :math:`t` is blank;
- :math:`\epsilon_t(n)`, if frame :math:`t` emits label :math:`n`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from torchopt.losses.arguments import floating, integral, same_shape, tensor


def ctc_loss_with_forward_probs(
    logits: torch.Tensor,
    logit_paddings: torch.Tensor,
    labels: torch.Tensor,
    label_paddings: torch.Tensor,
    *,
    blank_id: int = 0,
    log_epsilon: float = -1e5,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    r"""The CTC loss and its forward probabilities.

    Let :math:`y_t` be the softmax of the logits of frame :math:`t`, and :math:`r_n = 1` if label :math:`n + 1`
    equals label :math:`n`, else 0.  Then

    .. math::
        \epsilon_t(n) &= y_t(\ell_n) \bigl(\phi_{t-1}(n-1) + (1 - r_{n-1})\, \epsilon_{t-1}(n-1)
            + \epsilon_{t-1}(n)\bigr) \\
        \phi_t(n) &= y_t(\text{blank}) \bigl(\phi_{t-1}(n) + \epsilon_{t-1}(n)\bigr)

    and the loss is :math:`-\log(\phi_T(N) + \epsilon_T(N))`.  It is computed in log space and in double precision.
    As in Optax, the value of :math:`\phi` that is returned for the last frame is :math:`\phi_T + \epsilon_T`.

    The arguments and errors are those of :func:`ctc_loss`.

    Returns:
        The losses, of shape ``[B]``, and the logarithms of :math:`\phi` and :math:`\epsilon` after each frame, of
        shapes ``[T, B, N + 1]`` and ``[T, B, N]``.  Logits in half precision give results in single precision,
        since half precision cannot represent ``log_epsilon``.

    Example:
        >>> import torch, torchopt
        >>> logits, labels = torch.zeros(1, 2, 2), torch.tensor([[1]])
        >>> loss, blank, emit = torchopt.losses.ctc_loss_with_forward_probs(
        ...     logits, torch.zeros(1, 2), labels, torch.zeros(1, 1)
        ... )
        >>> loss.exp()  # three of the four alignments produce the label
        tensor([1.3333])
        >>> blank.shape, emit.shape
        (torch.Size([2, 1, 2]), torch.Size([2, 1, 1]))

    References:
        Graves et al., `Connectionist temporal classification <https://doi.org/10.1145/1143844.1143891>`_, 2006.
    """
    logits, frame_pads, labels, label_pads = _check(logits, logit_paddings, labels, label_paddings, blank_id)
    kind = torch.promote_types(logits.dtype, torch.float32)
    # Single precision would lose all digits of log probabilities near log_epsilon, and of probabilities near one.
    logits = logits.double()
    # Padded frames may contain NaN, which must reach neither the loss nor its gradient.
    log_p = _log_softmax(torch.where(frame_pads.unsqueeze(-1), 0.0, logits))
    blank = log_p[..., blank_id].T.unsqueeze(-1)  # [T, B, 1]
    emit = _log_prob_of_labels(log_p, labels)  # [T, B, N]
    # From a label, an alignment goes to the next label directly if they differ, and through a blank if they are equal.
    later = torch.arange(labels.shape[1], device=labels.device) < labels.shape[1] - 1
    repeats = ((labels == labels.roll(-1, 1)) & later).double()
    leave, leave_by_blank = log_epsilon * repeats, log_epsilon * (1.0 - repeats)

    log_emit = logits.new_full(labels.shape, log_epsilon)
    log_phi = F.pad(log_emit, (1, 0))  # before the first frame, zero labels have probability one
    phis, emits = [], []
    for t in range(logits.shape[1]):
        pad = frame_pads[:, t].unsqueeze(-1)
        left = _add_behind(log_phi, log_emit + leave)
        next_emit = _log_add(left[:, :-1], log_emit) + emit[t]
        next_phi = _add_behind(left + blank[t], log_emit + blank[t] + leave_by_blank)
        log_phi = torch.where(pad, log_phi, next_phi)
        log_emit = torch.where(pad, log_emit, next_emit)
        phis.append(log_phi)
        emits.append(log_emit)
    last = _add_behind(log_phi, log_emit)
    lengths = (~label_pads).sum(1, keepdim=True)
    loss = -torch.take_along_dim(last, lengths, 1).squeeze(1).to(kind)
    # Rounding can make the probability exceed one: clamp the loss at 0, but keep its derivatives.
    loss = loss + torch.where(loss < 0, -loss, 0.0).detach()
    if not phis:
        return (
            loss,
            log_phi.new_zeros(0, *log_phi.shape, dtype=kind),
            log_emit.new_zeros(0, *log_emit.shape, dtype=kind),
        )
    return loss, torch.stack([*phis[:-1], last]).to(kind), torch.stack(emits).to(kind)


def ctc_loss(
    logits: torch.Tensor,
    logit_paddings: torch.Tensor,
    labels: torch.Tensor,
    label_paddings: torch.Tensor,
    *,
    blank_id: int = 0,
    log_epsilon: float = -1e5,
) -> torch.Tensor:
    r"""The CTC loss: the negative log likelihood of label sequences with unknown alignment.

    :func:`ctc_loss_with_forward_probs` gives the recursion.  Differences from
    :func:`torch.nn.functional.ctc_loss`: this loss takes logits, the batch is the first dimension, padding is given
    by masks, padded frames may be anywhere, and the loss is twice differentiable and works under ``vmap``.

    Args:
        logits: Unnormalized log probabilities, floating, of shape ``[B, T, K]``: batch, frames, classes with blank.
        logit_paddings: Of shape ``[B, T]``; 1 for padded frames, 0 for the others.
        labels: The label sequences, integers of shape ``[B, N]``.
        label_paddings: Of shape ``[B, N]``; 1 for padded labels, 0 for the others.  Padding is at the end.
        blank_id: The class of the blank.
        log_epsilon: The finite number that replaces :math:`\log 0`.  If no alignment produces the label sequence,
            the loss is about ``-log_epsilon``.

    Returns:
        The losses, of shape ``[B]``.

    Raises:
        TypeError: If ``logits`` are not floating or ``labels`` are not integers.
        ValueError: If the shapes do not match or ``blank_id`` is not a class.

    Example:
        >>> import torch, torchopt
        >>> logits, labels = torch.zeros(1, 2, 2), torch.tensor([[1]])
        >>> torchopt.losses.ctc_loss(logits, torch.zeros(1, 2), labels, torch.zeros(1, 1)).exp()
        tensor([1.3333])

    References:
        Graves et al., `Connectionist temporal classification <https://doi.org/10.1145/1143844.1143891>`_, 2006.
    """
    return ctc_loss_with_forward_probs(
        logits, logit_paddings, labels, label_paddings, blank_id=blank_id, log_epsilon=log_epsilon
    )[0]


def _check(
    logits: torch.Tensor, logit_paddings: torch.Tensor, labels: torch.Tensor, label_paddings: torch.Tensor, blank: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Check dtypes and shapes, and convert the paddings to bools."""
    logits = floating('logits', logits)
    labels = integral('labels', labels, logits)
    frame_pads, label_pads = tensor(logit_paddings, logits), tensor(label_paddings, logits)
    for name, x, dims in (('logits', logits, '[B, T, K]'), ('labels', labels, '[B, N]')):
        if x.ndim != len(dims.split(',')):
            raise ValueError(f'{name} has shape {tuple(x.shape)}; expected {dims}. Add or drop dimensions.')
    same_shape('logits without its classes', logits[..., 0], 'logit_paddings', frame_pads)
    same_shape('labels', labels, 'label_paddings', label_pads)
    if len(labels) != len(logits):
        raise ValueError(
            f'labels holds {len(labels)} sequences, but logits {len(logits)}. Pass one label sequence per example.'
        )
    if not 0 <= blank < logits.shape[-1]:
        raise ValueError(
            f'blank_id is {blank}; expected one of the classes of logits, from 0 to {logits.shape[-1] - 1}.'
        )
    return logits, frame_pads != 0, labels, label_pads != 0


def _log_softmax(x: torch.Tensor) -> torch.Tensor:
    """Like ``torch.log_softmax``, but accurate to all digits if one class has a probability near one."""
    best = torch.zeros_like(x, dtype=torch.bool).scatter(-1, x.detach().argmax(-1, keepdim=True), True)
    ahead = x - torch.where(best, x, 0.0).sum(-1, keepdim=True)
    return ahead - torch.where(best, 0.0, ahead.exp()).sum(-1, keepdim=True).log1p()


def _log_prob_of_labels(log_p: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The log probability of each label in each frame, of shape ``[T, B, N]``; 0 for labels out of range."""
    inside = (labels >= 0) & (labels < log_p.shape[-1])
    index = torch.where(inside, labels, 0).unsqueeze(1)
    found = torch.take_along_dim(log_p, index, -1)
    return torch.where(inside.unsqueeze(1), found, 0.0).transpose(0, 1)


def _add_behind(log_phi: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
    r"""Add :math:`N` probabilities, given as logarithms, to the last :math:`N` of :math:`N + 1`."""
    return torch.cat([log_phi[:, :1], _log_add(log_phi[:, 1:], added)], -1)


def _log_add(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Like ``torch.logaddexp``, whose second derivative is NaN if the arguments differ as much as here."""
    difference = torch.where((a == b) & a.isinf(), 0.0, a - b)
    return torch.where(difference >= 0, a + F.softplus(-difference), b + F.softplus(difference))
