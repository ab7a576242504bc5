"""Compression where B alone travels, along rows of A that both sides know.

What is held back lies along the rows of earlier rounds. As much of it as the new rows can express joins the upload, and
the rest stays: with F what was held back and A the new rows, of full rank,

    B_due = B + F A^+,    D = Q(B_due) A,    F' = F (I - A^+ A) + (B_due - Q(B_due)) A

so that ``D + F' = B A + F``. What no later A expresses is never sent; it stays in F', where the certificate shows it.

Source: florist's own.
"""

import torch

from florist.errors import InvalidUpdateError
from florist.factors import AdapterState, LoraFactor


def with_expressible(update: AdapterState, owed: AdapterState) -> tuple[AdapterState, dict[str, LoraFactor]]:
    """What is due along the rows of an update, and what of the residual they cannot express, by module.

    Args:
        update: B as it was trained, and the rows A that both sides know, which have full rank.
        owed: what was held back before. A module that the update lacks stays held back as it is.

    Raises:
        InvalidUpdateError: what was held back has another shape; names the module.

    Cost: O((m + n) r s) a module, for a residual of rank s, and a solution of r equations.
    """
    due: dict[str, LoraFactor] = {}
    beyond: dict[str, LoraFactor] = {name: owed[name] for name in owed if name not in update.specs}
    for name, factor in update.items():
        if name not in owed.specs:
            due[name] = factor
            continue
        held = owed[name]
        if held.spec.shape != factor.spec.shape:
            raise InvalidUpdateError(
                f"{name}: expected a residual of shape {factor.spec.shape}, got {held.spec.shape}; begin without one"
            )
        rows, held_rows = factor.A.double(), held.A.double()
        # F A^+ = F_B (F_A A^T) (A A^T)^-1; the rows are orthogonal, so that the system is as good as they come.
        coordinates = torch.linalg.solve(rows @ rows.T, rows @ held_rows.T).T
        due[name] = LoraFactor(factor.B + (held.B.double() @ coordinates).to(factor.B.dtype), factor.A)
        beyond[name] = LoraFactor(held.B, (held_rows - coordinates @ rows).to(held.A.dtype))
    return AdapterState.of(due), beyond
