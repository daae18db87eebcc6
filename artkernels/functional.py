"""The operations, gathered as in torch.nn.functional."""

from .ops.gram import gram_matrix, gram_mse_loss

__all__ = ["gram_matrix", "gram_mse_loss"]
